// Ways to look at pictures and masks: enlarged, smooth or pixel-exact, cut out, outlined; see player.js.
const VIEWS = ['Overlay', 'Cut-out', 'Flat', 'Outline']; // of a mask
const ON_PHOTO = VIEWS.slice(0, 2); // which need one
const LARGE = 4; // times, of pictures saved larger
const CERTAIN = 0.995; // from here on certainty is not worth a number
const DECODED = 60; // pictures whose pixels are kept
const decoded = new Map();
let maskView = VIEWS[0]; // the same for all tracks
const left = new Set([0]); // classes that a cut-out leaves out: at first the ground

async function decode(uri) {
  const image = await imageOf(uri), canvas = make('canvas');
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}
function pixelsOf(uri) { // a promise of the ImageData of a picture
  if (!decoded.has(uri)) decoded.set(uri, decode(uri));
  if (decoded.size > DECODED) decoded.delete(decoded.keys().next().value);
  return decoded.get(uri);
}
function classesIn({ data }, colours) { // the class of each pixel of the exact mask
  const number = new Map(colours.map((hex, k) => [parseInt(hex.slice(1), 16), k]));
  return Array.from({ length: data.length / 4 }, (_, i) => number.get((data[4 * i] << 16) | (data[4 * i + 1] << 8) | data[4 * i + 2]) ?? 0);
}

// -- enlargement -----------------------------------------------------------------------------------------

function enlarged(image, smooth) { // the picture as a PNG with LARGE times as many pixels a side
  const canvas = make('canvas', '', { width: LARGE * image.naturalWidth, height: LARGE * image.naturalHeight });
  const pen = canvas.getContext('2d');
  Object.assign(pen, { imageSmoothingEnabled: smooth, imageSmoothingQuality: 'high' });
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL();
}
function largeLink(save, image, smooth) { // beside the link `save`, whose name it takes
  const node = make('a', 'save', { textContent: `${LARGE}×`, href: '#', title: `${LARGE} times as many pixels a side, PNG` });
  node.setAttribute('aria-label', `Save with ${LARGE} times as many pixels a side`);
  node.onclick = (event) => {
    if (!image.naturalWidth) return event.preventDefault();
    node.href = enlarged(image, smooth());
    node.download = save.node.download.replace(/\.\w+$/, `_x${LARGE}.png`);
  };
  return node;
}
const isSmooth = () => root.dataset.pixels !== 'true';

function sizeLine(frame, image) { // "64 × 64, enlarged × 4.1, smooth"
  const about = say('span', '', ''), mode = make('button', 'mode');
  const node = make('p', 'hint size', {}, about, mode);
  mode.title = 'Smooth or pixel-exact enlargement';
  mode.onclick = () => { root.dataset.pixels = isSmooth(); fill(); };
  let side = 0; // of the picture; the same at every step
  const show = () => { // asks for the layout, so not at every step
    const times = frame.clientWidth / side;
    set(mode, 'textContent', isSmooth() ? 'smooth' : 'pixel-exact');
    if (side) set(about, 'textContent', `${side} × ${image.naturalHeight}${times > 1.05 ? `, enlarged × ${times.toFixed(1)}` : ''}, `);
  };
  image.addEventListener('load', () => {
    if (side === image.naturalWidth) return;
    side = image.naturalWidth;
    show();
  });
  return { node, show };
}
function lightbox(title, image) { // the picture as large as the window, until any key or click
  const node = make('dialog', 'lightbox'), large = make('img', '', { src: image.src ?? image.toDataURL(), alt: image.alt || title });
  const close = make('button', '', { textContent: 'Close' });
  large.style.imageRendering = isSmooth() ? 'auto' : 'pixelated';
  node.append(large, make('p', '', {}, large.alt, close));
  node.onclick = () => node.close();
  node.onclose = () => node.remove();
  document.body.append(node);
  node.showModal();
}
function enlargeButton(title, frame, shown) { // `shown`: the picture that is seen
  const node = make('button', 'enlarge', { textContent: 'Enlarge' });
  node.setAttribute('aria-label', `Enlarge: ${title}`);
  node.onclick = () => lightbox(title, shown());
  if (!frame.classList.contains('before-after')) frame.onclick = node.onclick;
  return node;
}

// -- masks -----------------------------------------------------------------------------------------------

function maskViews(track, head, frame, parts, changed) { // parts: the images `under` and `over`
  const picture = ofForm(track, 'picture')[0]?.name;
  const canvas = make('canvas', 'view', { hidden: true }), named = make('span', 'named', { hidden: true });
  const names = VIEWS.filter((name) => picture || !ON_PHOTO.includes(name));
  const buttons = names.map((name) => make('button', '', { textContent: name, onclick: () => { maskView = name; changed(); } }));
  const node = make('div', 'views', {}, ...buttons);
  node.setAttribute('role', 'group');
  node.setAttribute('aria-label', 'View of the mask');
  canvas.setAttribute('role', 'img');
  frame.append(canvas, named);
  let now = null, asked = 0; // the step and the sample looked at
  const mine = () => (names.includes(maskView) ? maskView : names[0]);
  async function draw() {
    const own = asked += 1, found = now.step.x[head.name][now.sample], photo = picture && now.step.x[picture][now.sample];
    const [mask, below] = await Promise.all([pixelsOf(found.m), photo && pixelsOf(photo)]);
    if (own !== asked) return; // another step is looked at by now
    paint(canvas, mask, below, classesIn(mask, head.colours), mine());
  }
  let before; // the view that is shown
  const show = (step, sample) => {
    now = { step, sample };
    const view = mine();
    if (view !== before) choose(before = view);
    if (canvas.hidden) return;
    canvas.setAttribute('aria-label', `${view}: ${parts.over.alt}`);
    draw();
  };
  const choose = (view) => {
    buttons.forEach((button) => button.setAttribute('aria-pressed', button.textContent === view));
    canvas.hidden = view === 'Overlay';
    parts.over.hidden = !canvas.hidden;
    parts.under.hidden = !picture || !['Overlay', 'Outline'].includes(view);
    frame.classList.toggle('clear', view === 'Cut-out');
    node.parentElement?.classList.toggle('cutting', view === 'Cut-out');
    node.parentElement?.classList.toggle('alone', view !== 'Overlay');
  };
  frame.onpointermove = frame.onpointerdown = async (event) => {
    const box = frame.getBoundingClientRect(), found = now?.step.x[head.name][now.sample];
    if (!found) return;
    const [mask, sure] = await Promise.all([pixelsOf(found.m), pixelsOf(found.c)]);
    const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * mask.width), 0, mask.width - 1);
    const y = clamp(Math.floor(((event.clientY - box.top) / box.height) * mask.height), 0, mask.height - 1);
    const at = y * mask.width + x, share = sure.data[4 * at] / 255;
    named.textContent = `${head.classes[classesIn(mask, head.colours)[at]]}, ${share >= CERTAIN ? 'certain' : `${Math.round(100 * share)}% sure`}`;
    named.hidden = false;
    named.classList.toggle('low', y < mask.height / 4);
  };
  frame.onpointerleave = () => { named.hidden = true; };
  return { node, show, canvas, isCutOut: () => mine() === 'Cut-out' };
}
function paint(canvas, mask, below, classes, view) {
  const { width, height } = mask, image = new ImageData(width, height);
  const row = (i) => Math.floor(i / width);
  const beside = (i) => [i - width, i + width, ...[i - 1, i + 1].filter((k) => row(k) === row(i))].filter((k) => k >= 0 && k < classes.length);
  const edge = (i) => classes[i] !== 0 && beside(i).some((k) => classes[k] !== classes[i]); // the ground has no line
  classes.forEach((number, i) => {
    const shown = { Flat: true, Outline: edge(i), 'Cut-out': !left.has(number) }[view];
    const from = view === 'Cut-out' ? below.data : mask.data;
    if (shown) image.data.set([...from.subarray(4 * i, 4 * i + 3), 255], 4 * i);
  });
  Object.assign(canvas, { width, height });
  canvas.getContext('2d').putImageData(image, 0, 0);
}

// What every head says at the step looked at, and what several samples add; see player.js.
const LEGEND = 12; // classes
const MAGMA = '#000004 #140e36 #3b0f70 #641a80 #8c2981 #b73779 #de4968 #f7705c #fe9f6d #fecf92 #fcfdbf';
const HEAT = MAGMA.split(' '); // of how much samples differ, from not at all on
const PANELS = { picture: picturePanel, class_map: classMapPanel, class: classPanel, vector: vectorPanel };

function panels(track) {
  const parts = track.heads.map((head) => PANELS[head.form](track, head));
  const node = make('div', 'heads', {}, ...parts.map((part) => part.node));
  node.dataset.columns = track.heads.length - ofForm(track, 'vector').length;
  node.style.setProperty('--columns', Math.max(1, node.dataset.columns));
  const fill = () => parts.forEach((part) => part.fill?.());
  return { node, fill, show: (step, sample) => parts.forEach((part) => part.show(step, sample)) };
}
function told(track) { // how settled every head seems to be, and in the end one sentence on when it was
  const own = track.heads.filter((head) => head.role !== 'given');
  const all = own.map((head) => {
    const bar = make('i'), name = say('span', '', ''), node = make('span', '', {}, name, make('span', 'track', {}, bar));
    return { head, bar, name, node };
  });
  const story = say('p', 'story', ''), meanwhile = make('div', 'settled', {}, ...all.map((one) => one.node));
  const node = make('section', 'told', {}, story, meanwhile);
  const show = (step, sample) => {
    set(story, 'textContent', track.story[sample] ?? '');
    story.hidden = !story.textContent;
    meanwhile.hidden = !story.hidden || !(track.running || track.stopped);
    all.forEach(({ head, bar, name, node: one }) => {
      const share = step.s[head.name]?.[sample] ?? 0, isSettled = share >= SETTLED;
      bar.style.width = `${share}%`;
      set(name, 'textContent', `${capital(head.name)}${isSettled ? ' settled' : ''}`);
      one.classList.toggle('is-settled', isSettled);
      one.title = `${capital(head.name)}: about ${share}% settled at step ${step.i}`;
    });
  };
  return { node, fill() {}, show };
}
function panel(head, kind, body, aside = []) {
  const role = say('span', `role is-${head.role.split(' ')[0]}`, ROLES[head.role]);
  const caption = make('figcaption', '', {}, make('b', '', {}, capital(head.name), say('small', 'gloss', head.gloss)), role, ...aside);
  const node = make('figure', `head ${kind}`, {}, caption, ...body);
  node.dataset.modality = head.name;
  return node;
}
function beyond(track, head) { // says so where a head speaks of what it never saw
  const node = make('p', 'hint beyond', { hidden: true }), labels = ofForm(track, 'class')[0];
  const show = (step, sample) => {
    if (!head.taught) return;
    const [[k]] = labels ? largest(step.x[labels.name][sample], 1) : [[-1]], seenBefore = labels && head.taught.labels.includes(labels.classes[k]);
    node.hidden = Boolean(seenBefore);
    const here = labels ? `; this looks like “${labels.classes[k]}”, so take it with caution` : ', so take it with caution elsewhere';
    set(node, 'textContent', `The ${head.name} was learned from ${head.taught.by} alone${here}.`);
  };
  return { node, show };
}
function saveLink(track, head) {
  const node = make('a', 'save');
  const show = (uri, frame, sample) => {
    const exact = !uri.startsWith('data:image/webp'), step = frame.exact ? '' : `_step${frame.i}`;
    set(node, 'textContent', exact ? 'Save' : 'Save WebP');
    node.title = exact ? 'The exact picture, PNG' : 'A light preview of this step; the last step is exact';
    node.download = `${track.file}_${head.name}_${sample + 1}${step}.${exact ? 'png' : 'webp'}`;
    set(node, 'href', uri);
  };
  return { node, show };
}
function slider(className, label, property, value) { // the same for all tracks
  const node = make('input', className, { type: 'range', min: 0, max: 100, step: 1, value });
  node.setAttribute('aria-label', label);
  node.oninput = () => {
    root.style.setProperty(property, `${node.value}%`);
    root.querySelectorAll(`.${className}`).forEach((other) => set(other, 'value', node.value));
  };
  return node;
}
const percentOf = (property, otherwise) => parseFloat(root.style.getPropertyValue(property) || otherwise);

// -- pictures and masks ----------------------------------------------------------------------------------

function picturePanel(track, head) {
  const result = make('img', '', { alt: `${capital(head.name)} at this step`, hidden: true });
  const frame = make('div', 'frame', {}, ...(head.before ? beforeAfter(head) : []), result), noise = noiseOver(frame, head, track);
  frame.classList.toggle('before-after', Boolean(head.before));
  const save = saveLink(track, head), size = sizeLine(frame, result);
  const large = largeLink(save, result, isSmooth), enlarge = enlargeButton(capital(head.name), frame, () => noise.or(result));
  const show = (step, sample) => {
    result.hidden = false;
    set(result, 'src', step.x[head.name][sample]);
    set(result, 'alt', seen(track, head, step, sample));
    save.show(result.src, step, sample);
    noise.show(step, sample);
  };
  return { node: panel(head, 'visual', [frame, size.node], [enlarge, save.node, large]), fill: size.show, show };
}
function beforeAfter(head) {
  const before = make('img', 'before', { src: head.before, alt: 'Before; the part to repaint is tinted' });
  const tags = [say('span', 'tag', 'before'), say('span', 'tag after', 'after')];
  const label = 'Compare before and after, percent of before';
  return [before, make('span', 'divider'), ...tags, slider('compare', label, '--split', percentOf('--split', 0))];
}
function classMapPanel(track, head) {
  const picture = ofForm(track, 'picture')[0]?.name, save = saveLink(track, head);
  const under = make('img', '', { alt: '', hidden: true });
  const over = make('img', 'overlay', { alt: `${capital(head.name)} at this step`, hidden: true });
  const frame = make('div', picture ? 'frame see-through' : 'frame', {}, ...(picture ? [under] : []), over);
  const limits = beyond(track, head), noise = noiseOver(frame, head, track);
  const exact = make('img'), views = maskViews(track, head, frame, { under, over }, fill);
  const large = largeLink(save, exact, () => false);
  const seenNow = () => noise.or(views.canvas.hidden ? over : Object.assign(views.canvas, { alt: over.alt }));
  const enlarge = enlargeButton(capital(head.name), frame, seenNow);
  save.node.addEventListener('click', () => { // what is seen, if it is cut out
    if (views.isCutOut()) Object.assign(save.node, { href: views.canvas.toDataURL(), download: save.node.download.replace('.png', '_cut-out.png') });
  });
  const show = (step, sample) => {
    if (picture) set(under, 'src', step.x[picture][sample]);
    set(over, 'src', step.x[head.name][sample].o);
    set(over, 'alt', seen(track, head, step, sample));
    set(exact, 'src', step.x[head.name][sample].m);
    save.show(step.x[head.name][sample].m, step, sample);
    views.show(step, sample);
    limits.show(step, sample);
    noise.show(step, sample);
  };
  const body = [frame, classLegend(head), limits.node, views.node, ...(picture ? [opacity()] : [])];
  return { node: panel(head, 'visual', body, [enlarge, save.node, large]), show };
}
function classLegend(head) {
  const names = head.classes.slice(0, LEGEND).map((name, k) => {
    const node = make('button', '', { title: `Cut out: ${name}` }, swatch(head.colours[k]), name);
    const press = () => node.setAttribute('aria-pressed', !left.has(k));
    node.onclick = () => { // only while something is cut out, see player.css
      if (!left.delete(k)) left.add(k);
      press();
      fill();
    };
    press();
    return node;
  });
  return make('div', 'legend', {}, ...names);
}
function opacity() {
  const label = 'Opacity of the mask, percent';
  return make('label', 'fade', {}, 'Opacity', slider('opacity', label, '--opacity', percentOf('--opacity', 62)));
}

function seen(track, head, step, sample) { // what a picture shows, for those who do not see it
  const told = head.form === 'class_map' ? areasOf(head, step.x[head.name][sample].a) : [];
  const said = ofForm(track, 'class', 'vector').map((other) => saying(other, step, sample).text).filter(Boolean);
  const what = [...told, ...(told.length ? [] : said)].join(', ');
  return `${capital(head.name)} at step ${step.i} of ${track.total}${what ? `: ${what}` : ''}`;
}
function areasOf(head, shares) {
  return largest(shares, TOP).filter(([, share]) => share > 0).map(([k, share]) => `${head.classes[k]} ${percent(share / SCALE)}`);
}

// -- labels and embeddings -------------------------------------------------------------------------------

function bars(count) {
  const rows = Array.from({ length: count }, () => {
    const name = make('span', 'name'), value = make('span', 'value'), bar = make('i');
    return { name, value, bar, node: make('li', '', {}, name, value, make('span', 'track', {}, bar)) };
  });
  const show = (items) => rows.forEach(({ node, name, value, bar }, k) => {
    node.hidden = !items[k];
    if (!items[k]) return;
    const [text, share, number] = items[k];
    set(name, 'textContent', text);
    set(name, 'title', text);
    set(value, 'textContent', number);
    bar.style.width = `${100 * clamp(share, 0, 1)}%`;
  });
  return { node: make('ul', 'bars', {}, ...rows.map((row) => row.node)), show };
}
function classPanel(track, head) {
  const list = bars(head.role === 'given' ? 1 : TOP), before = make('p', 'hint first');
  const likely = (step, sample) => largest(step.x[head.name][sample], TOP).filter(([, v], k) => !k || v >= FAINT);
  const row = ([k, value]) => [head.classes[k], value / SCALE, percent(value / SCALE)];
  const show = (step, sample) => {
    list.show(likely(step, sample).map(row));
    const [first] = track.frames;
    before.hidden = head.role !== 'generated' || !hasGiven(track) || first.i !== 1 || step === first;
    if (before.hidden) return;
    const said = likely(first, sample).slice(0, 3).map(row);
    set(before, 'textContent', `First guess from your input: ${said.map(([name, , p]) => `${name} ${p}`).join(', ')}`);
  };
  return { node: panel(head, 'list', [list.node, before]), show };
}
// Whether something is given, and was from the first step on.
const hasGiven = (track) => track.fork === null && track.heads.some((head) => ['given', 'filled in'].includes(head.role));
function vectorPanel(track, head) {
  const groups = WORDS.map(wordGroup), unit = say('span', 'unit', 'similarity');
  const wordy = make('div', 'groups', {}, ...groups.map((group) => group.node));
  const strip = make('img', 'strip', { alt: '' }), hint = make('p', 'hint');
  const numbers = make('div', 'numbers', {}, strip, hint);
  const show = (step, sample) => {
    const said = step.x[head.name][sample];
    numbers.hidden = !said.strip;
    wordy.hidden = unit.hidden = Boolean(said.strip);
    if (!said.strip) return groups.forEach((group) => group.show(said));
    set(strip, 'src', said.strip);
    set(hint, 'textContent', `${said.size} numbers; this model cannot put them into words`);
  };
  const text = head.text ? [say('p', 'hint provided', `Your text: “${head.text}”. Below is what the model takes it for.`)] : [];
  return { node: panel(head, 'words', [...text, wordy, numbers], [unit]), show };
}
function wordGroup([name, heading, count]) {
  const list = bars(count), node = make('section', '', {}, say('h3', '', heading), list.node);
  node.dataset.words = name;
  const show = (said) => {
    node.hidden = !said[name].length;
    list.show(said[name].map(([text, cosine]) => [text, cosine, cosine.toFixed(2)]));
  };
  return { node, show };
}

// -- several samples -------------------------------------------------------------------------------------

function cards(track) {
  const all = Array.from({ length: track.samples }, (_, k) => card(track, k));
  return {
    node: make('div', 'cards', {}, ...all.map(({ node }) => node)),
    fill: () => all.forEach(({ node }, k) => node.setAttribute('aria-pressed', k === sampleOf(track))),
    show: (step) => all.forEach((one) => one.show(step)),
  };
}
function card(track, sample) {
  const visual = ofForm(track, 'picture')[0] ?? ofForm(track, 'class_map')[0];
  const said = ofForm(track, 'class')[0] ?? ofForm(track, 'vector')[0];
  const image = make('img', '', { alt: '' }), text = make('span', 'said');
  const node = make('button', 'sample-card', {}, ...(visual ? [image] : []), say('b', '', sample + 1), text);
  node.setAttribute('aria-label', `Sample ${sample + 1} of ${track.samples}`);
  node.onclick = () => {
    view.sample = sample;
    fill();
  };
  const show = (step) => {
    if (visual) set(image, 'src', thumbnail(visual, step, sample));
    if (said) set(text, 'textContent', saying(said, step, sample)?.text ?? '');
  };
  return { node, show };
}
function thumbnail(head, step, sample) {
  const found = step.x[head.name][sample];
  return head.form === 'class_map' ? found.m : found;
}
function heat(track) {
  const maps = changing(track, 'picture', 'class_map').map((head, k) => heatMap(track, head, k));
  const row = make('div', 'maps', {}, ...maps.map((map) => map.node));
  const heading = say('h3', '', `Where the ${track.samples} samples differ`);
  return {
    node: make('section', 'uncertainty', { hidden: !maps.length }, heading, row),
    fill: () => maps.forEach((map) => map.fill()),
    show: (step) => maps.forEach((map) => map.show(step)),
  };
}
function heatMap(track, head, number) {
  const id = `${element.id}-heat-${tracks.indexOf(track)}-${number}`, colours = heatFilter(id);
  const image = make('img', '', { alt: `How much the samples differ: ${head.name}`, hidden: true });
  image.style.filter = `url(#${id})`;
  const about = heatScale(head), frame = make('div', 'frame', {}, image);
  const highest = () => Math.max(...tracks.flatMap((t) => t.frames.map((step) => step.u?.[head.name]?.max ?? 0)));
  return {
    node: make('figure', '', {}, colours.node, frame, about.node),
    fill() {
      const top = highest();
      about.fill(top, tracks.some((t) => t.running));
      colours.fill(top || 1);
    },
    show(step) {
      image.hidden = false;
      set(image, 'src', step.u[head.name].map);
      about.show(step.u[head.name]);
    },
  };
}
function heatScale(head) {
  const gradient = make('div', 'gradient'), most = make('span', 'most'), now = make('p', 'now');
  gradient.style.background = `linear-gradient(90deg, ${HEAT.join(', ')})`;
  const ends = make('div', 'ends', {}, say('span', '', '0, all alike'), most);
  const meaning = {
    picture: 'Spread of the colours; 1 would be half black, half white.',
    class_map: 'Doubt about the class; 1 would be all classes equally likely.',
  }[head.form];
  const scale = make('div', 'scale', {}, gradient, ends);
  return {
    node: make('div', 'about', {}, say('b', '', capital(head.name)), scale, now, say('p', 'hint', meaning)),
    fill(top, running) {
      set(most, 'textContent', `${top.toFixed(2)}, the most ${running ? 'so far' : 'at any step'}`);
    },
    show: ({ mean, max }) => set(now, 'textContent', `At this step: mean ${mean.toFixed(2)}, most ${max.toFixed(2)}`),
  };
}
function heatFilter(id) { // grey 0 … top -> the colours of HEAT
  const channels = ['R', 'G', 'B'].map((name) => draw(`feFunc${name}`, { type: 'table' }));
  const node = draw('svg', { class: 'filter', width: 0, height: 0, 'aria-hidden': 'true' });
  const filter = draw('filter', { id, 'color-interpolation-filters': 'sRGB', x: 0, y: 0, width: 1, height: 1 });
  const transfer = draw('feComponentTransfer', {});
  transfer.append(...channels);
  filter.append(transfer);
  node.append(filter);
  const fill = (top) => channels.forEach((table, channel) => {
    const values = Array.from({ length: 256 }, (_, grey) => heatColour(grey / 255 / top, channel).toFixed(3));
    table.setAttribute('tableValues', values.join(' '));
  });
  return { node, fill };
}
function heatColour(share, channel) {
  const place = clamp(share, 0, 1) * (HEAT.length - 1), k = Math.min(Math.floor(place), HEAT.length - 2);
  const [low, high] = HEAT.slice(k, k + 2).map((hex) => parseInt(hex.slice(1 + 2 * channel, 3 + 2 * channel), 16));
  return (low + (place - k) * (high - low)) / 255;
}

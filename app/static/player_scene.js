// A run that is over as present mode plays it, see app/run/showcase.py: few moments, small enough for the browser to keep.
const MOMENTS = 12, SIDE = 128; // of a run; px of a picture

async function sceneOf(track) {
  const gap = (track.frames.length - 1) / (MOMENTS - 1);
  const some = gap > 1 ? Array.from({ length: MOMENTS }, (_, k) => track.frames[Math.round(k * gap)]) : [...track.frames];
  const noise = [1, ...some.slice(1, -1).map((step) => noiseOf(step.t / some[0].t)), 0];
  const tiles = await Promise.all(track.heads.map((head) => tileOf(head, head.role === 'given' ? some.slice(-1) : some)));
  const pinned = track.heads.filter((head) => head.role === 'given').map((head) => head.name);
  return { pinned, steps: track.total, noise, tiles: tiles.filter((tile) => tile.strip || tile.texts.some(Boolean)) };
}
function noiseOf(u) { // the share of noise in the state at a time, 1 ... 0, of the cosine schedule
  const noise = Math.sin((Math.PI / 2) * u), signal = Math.cos((Math.PI / 2) * u);
  return noise / (noise + signal);
}
async function tileOf(head, steps) { // of the first sample
  const tile = { name: head.name, form: head.form };
  if (!isPicture(head)) return { ...tile, texts: steps.map((step) => saying(head, step, 0).text ?? '') };
  const images = await Promise.all(steps.map((step) => imageOf(thumbnail(head, step, 0))));
  const size = Math.min(SIDE, images[0].naturalWidth), strip = make('canvas', '', { width: size * images.length, height: size });
  const pen = strip.getContext('2d');
  pen.imageSmoothingEnabled = head.form === 'picture'; // classes have no colours between
  images.forEach((image, k) => pen.drawImage(image, k * size, 0, size, size));
  return { ...tile, size, strip: head.form === 'picture' ? strip.toDataURL('image/webp', 0.85) : strip.toDataURL() };
}
async function imageOf(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

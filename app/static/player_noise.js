// The noisy states that the steps start from, over the predictions; see player.js. The box is one of Gradio's, as the
// server has to know of it: runs have noisy states only if it was ticked when they began.
const noiseBox = element.closest('.run-panel')?.querySelector('.noise-switch input');
const wantsNoise = () => Boolean(noiseBox?.checked);
const hasNoise = (track, head) => wantsNoise() && track.frames.some((step) => step.n?.[head.name]);
let askedFor = null; // the run that is to be made again for its noisy states

function noiseOver(frame, head, track) { // a picture that covers what is in the frame otherwise; not there if unwanted
  const node = make('img', 'noisy');
  const show = (step, sample) => {
    const uri = wantsNoise() && step.n?.[head.name]?.[sample];
    if (!uri) return node.remove();
    set(node, 'src', uri);
    set(node, 'alt', `${capital(head.name)} under noise, from which step ${step.i} of ${track.total} starts`);
    if (!node.isConnected) frame.append(node);
  };
  return { show, or: (other) => (node.isConnected ? node : other) };
}
function askForNoise() { // once, when nothing is running, of runs that were made without
  const track = tracks.at(-1), lacks = tracks.some((one) => !one.noisy && changing(one, 'picture', 'class_map').length);
  const isOver = track && !tracks.some((one) => one.running) && !track.id.startsWith('live'); // which are made anew anyway
  if (!wantsNoise() || !lacks || !isOver || askedFor === track.id) return;
  askedFor = track.id;
  element.closest('.run-panel').querySelector('button[id$="-noise-again"]').click();
}
noiseBox?.addEventListener('change', () => setTimeout(() => { // Gradio knows of it by then
  askedFor = null;
  fill();
  askForNoise();
}));

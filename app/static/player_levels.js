// How much signal there is of every modality at each step, as thin tracks below the scrubber; see player.js.
const HALF = 50; // percent of signal

function levels(track) {
  const rows = track.heads.map((head) => levelRow(track, head));
  const about = say('p', 'hint', 'How clear each one is at every step: 0% is noise alone, 100% is free of it.');
  const node = make('section', 'levels', {}, ...rows.map((row) => row.node), about);
  const fill = () => {
    node.hidden = !rows.map((row) => row.fill()).includes(true);
  };
  return { node, fill, show: (step) => rows.forEach((row) => row.show(step)) };
}
function levelRow(track, head) {
  const shaded = make('span', 'shades'), now = make('span');
  const node = make('div', 'row', {}, shaded, make('span', 'text', {}, say('span', '', capital(head.name)), now));
  node.dataset.level = head.name;
  shaded.setAttribute('role', 'img');
  const fill = () => {
    const known = track.frames.filter((step) => step.l?.[head.name] !== undefined);
    node.hidden = !known.length;
    if (node.hidden) return false;
    shaded.style.background = shades(known.map((step) => [step.i, step.l[head.name]]), track.total);
    shaded.setAttribute('aria-label', inWords(head, known));
    return true;
  };
  const show = (step) => {
    shaded.style.setProperty('--at', placeOf(step.i, track.total));
    set(now, 'textContent', `${step.l?.[head.name] ?? 0}%`);
  };
  return { node, fill, show };
}
const placeOf = (step, total) => `${((100 * (step - 1)) / Math.max(1, total - 1)).toFixed(1)}%`; // of the thumb
function shades(points, total) {
  const shade = (share) => `color-mix(in srgb, var(--ink) ${share}%, var(--soft))`;
  const stops = points.map(([step, share]) => `${shade(share)} ${placeOf(step, total)}`);
  return `linear-gradient(90deg, ${stops.join(', ')}, var(--soft) ${placeOf(points.at(-1)[0], total)})`; // nothing is known beyond
}
function inWords(head, steps) { // for those who do not see it
  const share = (step) => step.l[head.name], [first] = steps, last = steps.at(-1);
  const half = steps.find((step) => share(step) >= HALF);
  const ends = `${share(first)}% at step ${first.i}, ${share(last)}% at step ${last.i}`;
  const middle = half && half !== first ? `; more than half from step ${half.i} on` : '';
  return `Signal in the ${head.name}, the rest is noise: ${ends}${middle}`;
}

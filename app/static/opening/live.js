// Live mode: sees when the visitor has let go, so that a whole run refines the picture. See app/tabs/live.py.
window.mmdiffLive = (() => {
  const REST = 600, timers = {}; // ms without a change or a picture
  let held = false;
  addEventListener('pointerdown', () => { held = true; }, true);
  for (const name of ['pointerup', 'pointercancel']) addEventListener(name, () => { held = false; }, true);
  const shown = (task) => document.querySelector(`#${task}-player [data-run="live-${task}"]`);

  function hold(task) {
    clearTimeout(timers[task]);
  }
  function settle(task) { // a picture has come
    hold(task);
    const run = shown(task);
    if (!run) return;
    mirror(task, run);
    timers[task] = setTimeout(() => (held ? settle(task) : document.getElementById(`${task}-refine`).click()), REST);
  }
  function mirror(task, run) { // where the player is below what is painted, the picture is in a corner, too
    const picture = run.querySelector('figure[data-modality="image"] .frame img:last-of-type');
    const area = document.getElementById(`${task}-live`).closest('.workbench');
    let corner = area.querySelector('.live-corner');
    if (!corner) area.append(corner = Object.assign(new Image(), { className: 'live-corner', alt: '' }));
    corner.hidden = !picture;
    if (picture) corner.src = picture.src;
  }
  return { hold, settle };
})();

// The last runs of this browser: a strip to restore them from, and an address that brings them back on Reload and Back.
// A run is kept as its picture, which has all settings inside (see player_data.py), so that nothing else is needed.
(() => {
  const KEY = 'mmdiff-runs', SPOT = 'mmdiff-spot', MOST = 12, READY_MS = 100;
  let shown = ''; // the run that is on the page, by its id
  let dirty = false; // whether something was set, painted or uploaded since the last run

  const menu = () => document.querySelector('.facts select');
  const checkpoint = () => menu()?.selectedOptions[0].textContent ?? document.querySelector('.facts span')?.textContent ?? '';
  function kept() {
    try { return JSON.parse(localStorage.getItem(KEY)) ?? []; } catch { return []; } // storage may be switched off
  }
  function keep(runs) {
    for (let many = Math.min(MOST, runs.length); many >= 0; many -= 1) { // fewer where there is no room
      try { return localStorage.setItem(KEY, JSON.stringify(runs.slice(0, many))); } catch { /* once more with fewer */ }
    }
  }
  async function fileOf(run) {
    return new File([await (await fetch(run.picture)).blob()], `${run.title || 'run'}.png`, { type: 'image/png' });
  }
  const give = async (run, input) => giveFile(input, await fileOf(run));
  function make(tag, className, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), { className, ...properties });
    node.append(...children);
    return node;
  }

  // -- the address: #task or #task/run -------------------------------------------------------------------

  const openTask = () => visible('[role=tabpanel]')?.id.replace(/-tab$/, '');
  const place = () => location.hash.slice(1).split('/').map(decodeURIComponent);
  const address = (task, id) => `${location.pathname}#${[task, id].filter(Boolean).map(encodeURIComponent).join('/')}`;
  function openTab(task) {
    const title = JSON.parse(document.getElementById('runs').dataset.tabs)[task];
    const inMenu = [...document.querySelectorAll('.overflow-dropdown button')].find((one) => one.textContent === title);
    if (!document.getElementById(`${task}-tab`)?.offsetParent) (document.getElementById(`${task}-tab-button`) ?? inMenu)?.click();
  }
  function pageOf(name) { // the path of the page of a checkpoint, below the first one's; undefined if there is none
    const option = [...(menu()?.options ?? [])].find((one) => one.textContent === name);
    if (!option) return undefined;
    const own = menu().dataset.own, path = location.pathname.replace(/\/$/, '');
    return `${own ? path.slice(0, -own.length - 1) : path}/${option.value}`;
  }
  function restore(run) {
    if (run.checkpoint !== checkpoint() && pageOf(run.checkpoint)) {
      return leaveFor(run.checkpoint, [run.task, run.id]);
    }
    shown = run.id;
    return give(run, document.querySelector('.top input[type=file]'));
  }
  function follow() { // what the address says
    const [task, id] = place(), run = kept().find((one) => one.id === id);
    if (run && id !== shown) restore(run);
    else if (task) openTab(task);
  }

  // -- the strip -----------------------------------------------------------------------------------------

  function item(run) {
    const about = `${run.about}. Click to restore, drag onto a result to compare.`;
    const picture = make('img', '', { src: run.picture, alt: `${run.title || 'A run'}, ${run.about}`, title: about, onclick: () => restore(run) });
    picture.ondragstart = (event) => event.dataTransfer.setData('text/mmdiff-run', run.id);
    const open = make('button', 'open', { textContent: run.title || run.about, title: about, onclick: () => restore(run) });
    const beside = make('button', 'small', { textContent: 'Compare', onclick: () => compare(run) });
    const use = make('button', 'small', { textContent: 'Use as input', onclick: async () => document.dispatchEvent(new CustomEvent('picture', { detail: await fileOf(run) })) });
    return make('li', '', {}, picture, open, make('div', '', {}, beside, use));
  }
  function compare(run) { // the run beside the one that is shown
    const input = visible('.run-panel')?.querySelector('input[type=file]');
    if (input) give(run, input);
  }
  function draw() {
    const box = document.getElementById('runs'), runs = kept();
    if (!box) return;
    const clear = make('button', 'small', { textContent: 'Forget them', onclick: () => { keep([]); draw(); } });
    box.replaceChildren(make('h2', '', { textContent: 'Your last runs' }), clear, make('ul', '', {}, ...runs.map(item)));
    box.hidden = !runs.length;
  }

  document.addEventListener('run-done', ({ detail }) => {
    if (!detail.picture) return;
    const same = kept().find((one) => one.picture === detail.picture);
    const run = { ...detail, id: same?.id ?? Date.now().toString(36), checkpoint: checkpoint() };
    keep([run, ...kept().filter((one) => one !== same && one.id !== run.id)]);
    dirty = false;
    draw();
    const here = address(run.task, run.id);
    if (shown !== run.id && location.pathname + location.hash !== here) history.pushState(null, '', here);
    shown = run.id;
  });
  document.addEventListener('dragover', (event) => {
    if (event.dataTransfer?.types.includes('text/mmdiff-run') && event.target.closest?.('.run-panel')) event.preventDefault();
  });
  document.addEventListener('drop', (event) => {
    const run = kept().find((one) => one.id === event.dataTransfer?.getData('text/mmdiff-run'));
    if (!run || !event.target.closest?.('.run-panel')) return;
    event.preventDefault();
    compare(run);
  });
  document.addEventListener('click', (event) => {
    if (!event.isTrusted || !event.target.closest?.('[role=tab], .overflow-dropdown button')) return;
    setTimeout(() => { // the tab that the visitor has opened is there by then
      const task = openTask();
      if (task && task !== place()[0]) history.pushState(null, '', address(task));
    }, READY_MS);
  });
  window.addEventListener('popstate', follow);

  // -- other checkpoints ---------------------------------------------------------------------------------

  document.addEventListener('input', (event) => { dirty ||= Boolean(event.target.closest?.('.controls')); });
  document.addEventListener('pointerup', (event) => { dirty ||= Boolean(event.target.closest?.('.painter .sheet')); });
  document.addEventListener('change', (event) => {
    if (event.target !== menu()) return;
    const running = visible('.player[data-state="running"]');
    if ((dirty || running) && !window.confirm('Go to another checkpoint? What you have set, painted or uploaded here is lost.')) {
      menu().value = menu().dataset.own;
    } else leaveFor(checkpoint(), [openTask()]);
  });
  const heightOf = () => document.getElementById('header').getBoundingClientRect().top;
  function leaveFor(name, hash) { // its page opens at the same tab, scrolled as this one
    try { sessionStorage.setItem(SPOT, heightOf()); } catch { /* it opens at the top */ }
    location.assign(`${pageOf(name)}#${hash.filter(Boolean).map(encodeURIComponent).join('/')}`);
  }
  function comeBack() {
    let spot = null;
    try { spot = sessionStorage.getItem(SPOT); sessionStorage.removeItem(SPOT); } catch { /* none is known */ }
    const scroll = (tries) => { // the page still grows
      scrollBy({ top: heightOf() - spot, behavior: 'instant' });
      if (heightOf() - spot > 1 && tries) setTimeout(scroll, READY_MS, tries - 1);
    };
    if (spot !== null) scroll(20);
  }

  function ready() {
    if (!document.getElementById('runs') || !document.querySelector('.top input[type=file]')) return void setTimeout(ready, READY_MS);
    const asked = new URLSearchParams(location.search).get('model');
    if (asked && asked !== checkpoint() && pageOf(asked)) return location.replace(pageOf(asked) + location.search + location.hash);
    draw();
    return void setTimeout(() => { follow(); comeBack(); }, READY_MS);
  }
  ready();
})();

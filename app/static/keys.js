// Keys for the whole page, and one tab stop for each group of radio buttons.
(() => {
  const KEYS = [
    ['Ctrl Enter', 'Run'], ['Enter', 'Run, while you write a text'], ['Space', 'Play or pause'],
    ['← →', 'One step back or on'], ['[ ]', 'Smaller or larger brush'], ['Ctrl Z', 'Undo a stroke'], ['?', 'This list'],
  ];
  const WRITES = 'input:not([type=range], [type=radio], [type=checkbox]), textarea, select, [contenteditable=true]';
  const player = () => visible('.player');

  function dialog() {
    const found = document.getElementById('keys');
    if (found) return found;
    const node = Object.assign(document.createElement('dialog'), { id: 'keys' });
    const rows = KEYS.map(([key, does]) => `<dt><kbd>${key}</kbd></dt><dd>${does}</dd>`).join('');
    node.innerHTML = `<h2>Keys</h2><dl>${rows}</dl><form method="dialog"><button>Close</button></form>`;
    node.onclick = (event) => event.target === node && node.close(); // beside it
    return document.body.appendChild(node);
  }
  function run() {
    visible('.run-row button.primary')?.click();
  }
  function actionOf(event) {
    const { key, target } = event, writes = target.closest?.(WRITES);
    if (key === 'Enter' && (event.ctrlKey || event.metaKey)) return run;
    if (key === 'Enter' && !event.shiftKey && target.closest?.('.runs-on-enter')) return run;
    if (writes || event.ctrlKey || event.metaKey || event.altKey) return null;
    if (key === '?') return () => dialog().showModal();
    if (target.closest?.('input, canvas, dialog')) return null; // has keys of its own
    const presses = target.closest?.('a, button:not([role=tab][aria-selected=true]), [role=button]');
    if (key === ' ' && !presses) return () => player()?.querySelector('.play').click();
    if (key === 'ArrowLeft' || key === 'ArrowRight') return () => player()?.dispatchEvent(new KeyboardEvent('keydown', { key }));
    return null;
  }
  // Code that scrolls is reached by keys, too; it is on the page once it has been opened.
  const reach = () => document.querySelectorAll('.cm-scroller:not([tabindex="0"])').forEach((node) => { node.tabIndex = 0; });
  document.addEventListener('click', () => [300, 1500, 4000].forEach((wait) => setTimeout(reach, wait)));
  // Gradio names every radio button differently, so that each would be a tab stop and arrows would do nothing.
  function group() {
    document.querySelectorAll(':is(.modality, .leads) fieldset').forEach((set) => {
      set.querySelectorAll('input[type=radio]').forEach((radio) => { radio.name = set.id; });
    });
  }
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Tab') return group();
    const action = event.defaultPrevented || event.isComposing ? null : actionOf(event);
    if (!action) return;
    event.preventDefault();
    action();
  });
  // What is typed into a list of names searches it, instead of being added to the name that is chosen.
  let entered = null;
  document.addEventListener('focusin', ({ target }) => { entered = target.matches?.('input[role=combobox]') ? target : null; });
  document.addEventListener('click', ({ target }) => {
    if (target !== entered) return;
    entered = null;
    target.select();
  });
  const addButton = () => {
    if (!window.matchMedia('(pointer: fine) and (min-width: 901px)').matches) return; // no keyboard, no room
    const button = Object.assign(document.createElement('button'), { className: 'keys-button', textContent: '?' });
    button.setAttribute('aria-label', 'List of keys');
    button.onclick = () => dialog().showModal();
    document.body.append(button);
  };
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', addButton);
  else addButton();
})();

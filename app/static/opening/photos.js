// Example photos can be dragged into their tab, too, which is the same as a click.
(() => {
  let dragged = null;
  const place = (event) => dragged && event.target.closest?.('.workbench');
  const end = () => {
    document.querySelectorAll('.dropping').forEach((other) => other.classList.remove('dropping'));
    dragged = null;
  };
  const photo = (event) => event.target.closest?.('.photos button');
  addEventListener('pointerover', (event) => { if (photo(event)) photo(event).draggable = true; }, true);
  addEventListener('dragstart', (event) => { dragged = photo(event) ?? null; }, true);
  addEventListener('dragover', (event) => {
    if (!place(event)) return;
    event.preventDefault();
    event.stopPropagation();
    place(event).classList.add('dropping');
  }, true);
  addEventListener('drop', (event) => {
    if (!place(event)) return;
    event.preventDefault();
    event.stopPropagation();
    dragged.click();
    end();
  }, true);
  addEventListener('dragend', end, true);
})();

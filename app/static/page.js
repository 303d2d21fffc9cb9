// What the scripts of the whole page share; they stand behind this in the same script, see theme.py.
const visible = (selector, within = document) => [...within.querySelectorAll(selector)].find((node) => node.offsetParent);

function giveFile(input, file) { // as if the visitor had chosen it
  const files = new DataTransfer();
  files.items.add(file);
  input.files = files.files;
  input.dispatchEvent(new Event('change', { bubbles: true }));
}

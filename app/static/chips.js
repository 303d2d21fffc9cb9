// Words to click beside a text: each click writes a caption as the training captions are; see chips.py.
(() => {
  const boxOf = (chips) => chips.closest('.given').querySelector('.runs-on-enter :is(textarea, input)');
  const inText = (text, words) => ` ${text.toLowerCase().replace(/[^\p{L}-]+/gu, ' ')} `.includes(` ${words.toLowerCase()} `);
  const withArticle = (words) => (words ? `${/^[aeiou]/i.test(words) ? 'an' : 'a'} ${words}` : '');

  function chosenIn(chips, text) { // slot -> words: the longest of its words that the text has
    const chosen = {};
    for (const row of chips.querySelectorAll('[data-slot]')) {
      const own = [...row.querySelectorAll('.chip')].map((chip) => chip.textContent).filter((words) => inText(text, words));
      chosen[row.dataset.slot] = own.sort((a, b) => b.length - a.length)[0];
    }
    return chosen;
  }
  function caption(chips, { colour, shape, kind, species, surroundings, details }) {
    const first = chips.querySelector('[data-slot=kind] .chip')?.textContent ?? 'thing';
    const subject = [colour, shape, kind ?? first].filter(Boolean).join(' ');
    const about = [`a photo of ${withArticle(subject)}`, withArticle(species)].filter(Boolean).join(', ');
    return [about, surroundings, details && `with ${details}`].filter(Boolean).join(' ');
  }
  function press(chips) {
    const chosen = chosenIn(chips, boxOf(chips).value);
    for (const chip of chips.querySelectorAll('.chip')) {
      chip.setAttribute('aria-pressed', chosen[chip.parentElement.dataset.slot] === chip.textContent);
    }
  }
  function write(box, text) {
    box.value = text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
  }
  document.addEventListener('click', (event) => {
    const chip = event.target.closest?.('.chip'), chips = chip?.closest('.chips');
    if (!chip) return;
    const box = boxOf(chips), slot = chip.parentElement.dataset.slot, chosen = chosenIn(chips, box.value);
    chosen[slot] = chosen[slot] === chip.textContent ? undefined : chip.textContent;
    write(box, Object.values(chosen).some(Boolean) ? caption(chips, chosen) : '');
    press(chips);
  });
  const follow = (event) => {
    const chips = event.target.closest?.('.given')?.querySelector('.chips');
    if (chips) press(chips);
  };
  document.addEventListener('input', follow);
  document.addEventListener('focusin', follow); // an example may have changed the text meanwhile
})();

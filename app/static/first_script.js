(() => {
  // The theme as Gradio will choose it, for what is seen before it.
  const asked = new URLSearchParams(location.search).get('__theme'), dark = matchMedia('(prefers-color-scheme: dark)');
  const look = () => { document.documentElement.dataset.look = ['light', 'dark'].includes(asked) ? asked : dark.matches ? 'dark' : 'light'; };
  dark.addEventListener('change', look);
  look();
})();
(() => {
  const frame = window.requestAnimationFrame;
  let loading = true;
  window.requestAnimationFrame = (callback) =>
    loading ? frame(callback) : setTimeout(() => frame(callback), 1000);
  const look = () => {
    if (!document.getElementById('header')) return setTimeout(look, 100);
    loading = false;
    window.requestAnimationFrame = frame;
  };
  look();
})();

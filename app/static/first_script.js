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

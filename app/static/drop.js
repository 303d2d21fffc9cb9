// Files come from anywhere: dropped on any part of the page, pasted, or taken with the camera. A picture goes to the
// row it is dropped on, otherwise to the photo of the tab; any other file is taken for a run to restore.
(() => {
  // An earlier run has a picture in it, too, but is for runs.js.
  const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes('Files') && !dataTransfer.types.includes('text/mmdiff-run');

  function rowFor(target) {
    const row = target.closest?.('.modality');
    return row?.querySelector('input[type=file]') ? row : visible('.modality[id$="-image-row"]');
  }
  function give(file, target) {
    const row = file.type.startsWith('image/') ? rowFor(target) : null;
    const input = row ? row.querySelector('input[type=file]') : document.querySelector('.top input[type=file]');
    if (!input) return;
    const provide = row?.querySelector('input[value="I provide"]');
    if (provide && !provide.checked) provide.click();
    giveFile(input, file);
  }

  document.addEventListener('dragover', (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // or the browser would open the file in place of the page
    document.querySelector('.tabs')?.classList.add('dropping');
  });
  document.addEventListener('dragleave', (event) => event.relatedTarget || document.querySelector('.tabs')?.classList.remove('dropping'));
  document.addEventListener('drop', (event) => {
    document.querySelector('.tabs')?.classList.remove('dropping');
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation(); // Gradio's own boxes would take it once more
    const [file] = event.dataTransfer.files;
    if (file) give(file, event.target);
  }, true);
  document.addEventListener('paste', (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    give(file, event.target);
  });

  // Gradio leaves a message on a wrong file for ten seconds, whatever is done meanwhile.

  const MESSAGE_MS = 5000;
  let timer = null;
  const forget = () => document.querySelectorAll('.toast-body .toast-close').forEach((close) => close.click());
  document.addEventListener('change', ({ target }) => {
    forget();
    if (target.type !== 'file') return;
    clearTimeout(timer);
    timer = setTimeout(forget, MESSAGE_MS);
  }, true);
  document.addEventListener('click', ({ isTrusted, target }) => isTrusted && !target.closest?.('.toast-body') && forget(), true);

  document.addEventListener('picture', ({ detail }) => give(detail, document.body)); // of an earlier run, see runs.js

  // The camera

  function dialog() {
    const node = document.createElement('dialog');
    node.className = 'camera-dialog';
    node.innerHTML = `<h2>Camera</h2><p role="alert"></p><video autoplay playsinline muted></video>
      <div><button type="button" class="take">Take the photo</button><button type="button" class="close">Close</button></div>`;
    return document.body.appendChild(node);
  }
  async function photograph(row) {
    const node = dialog(), video = node.querySelector('video'), take = node.querySelector('.take');
    node.showModal();
    take.disabled = true;
    let stream = null;
    node.onclose = () => { stream?.getTracks().forEach((track) => track.stop()); node.remove(); };
    node.querySelector('.close').onclick = () => node.close();
    video.onloadeddata = () => { take.disabled = false; };
    take.onclick = () => {
      const canvas = Object.assign(document.createElement('canvas'), { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext('2d').drawImage(video, 0, 0);
      canvas.toBlob((blob) => { give(new File([blob], 'camera.png', { type: 'image/png' }), row); node.close(); });
    };
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
      if (node.open) video.srcObject = stream; else node.onclose();
    } catch (error) {
      node.querySelector('p').textContent = `There is no picture from a camera: ${error.message}. Upload a photo instead.`;
    }
  }
  if (!navigator.mediaDevices?.getUserMedia) {
    document.head.append(Object.assign(document.createElement('style'), { textContent: '.camera { display: none !important; }' }));
  }
  document.addEventListener('click', (event) => {
    if (event.target.closest?.('.camera')) photograph(event.target.closest('.modality'));
  });
})();

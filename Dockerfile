# The demo in a container, as nobody in particular: docker build -t mmdiff . && docker run -p 7860:7860 mmdiff
# See docs/hosting.md for a smaller image, GPUs, memory and a read-only file system.
FROM python:3.11-slim

# Nothing is written below /srv/mmdiff; what the page stores for a day goes to /tmp.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    GRADIO_TEMP_DIR=/tmp/gradio \
    MALLOC_ARENA_MAX=2 \
    GRADIO_ANALYTICS_ENABLED=False

RUN useradd --uid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin mmdiff
WORKDIR /srv/mmdiff

# First and apart, so that a change of code does not install everything again.
ARG PIP_EXTRA_INDEX_URL=""
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

COPY README.md app.py ./
COPY app app
COPY mmdiff mmdiff
COPY docs docs
COPY checkpoints checkpoints

USER 1000
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/gradio_api/app_id', timeout=5)"]
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]

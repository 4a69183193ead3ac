# An HTTP service of one model on a CPU: docs/serving.md. Build it in this folder:
#   docker build -t hybridmednet-serve .
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp -e HYBRIDMEDNET_API_KEY \
#     -v "$PWD/checkpoints/<run>:/model:ro" hybridmednet-serve

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt requirements-serve.txt /build/
WORKDIR /build
# The pair without CUDA, a third of the size; both from one index, or torchvision would not load.
RUN sed -nE '/^torch(vision)?[ >]/s/ *#.*//p' requirements.txt > torch.txt \
    && python -m venv /venv \
    && /venv/bin/pip install -r torch.txt --index-url https://download.pytorch.org/whl/cpu \
    && /venv/bin/pip install -r requirements.txt -r requirements-serve.txt

FROM python:3.12-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin serve
COPY --from=build /venv /venv
WORKDIR /app
COPY configs configs
COPY data data
COPY deployment deployment
COPY evaluation evaluation
COPY inference inference
COPY models models
COPY training training
COPY utils utils
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# exec form: SIGTERM reaches the server, which answers what it has taken
ENTRYPOINT ["python", "-m", "inference.serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model"]

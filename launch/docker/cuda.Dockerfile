# docker build -f launch/docker/cuda.Dockerfile -t asr-jax:cuda .
FROM python:3.12-slim
WORKDIR /asr
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY asr_jax asr_jax
COPY configs configs
RUN pip install --no-cache-dir '.[cuda,gcs]'
COPY samples samples
CMD ["asr-jax", "--help"]

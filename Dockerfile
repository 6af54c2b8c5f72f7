# docker build --target cpu -t ummkd .    or --target gpu (docker run --gpus all …)
# docker run --rm -v "$PWD:/work" ummkd train --data_dir=data --run_dir=runs/ours
FROM python:3.11-slim AS source
WORKDIR /source
COPY setup.py pyproject.toml README.md LICENSE requirements.lock ./
COPY ummkd_tf ummkd_tf
COPY experiments experiments
COPY data_prep data_prep

FROM source AS gpu
RUN pip install --no-cache-dir --constraint requirements.lock ".[gpu]"
WORKDIR /work
ENTRYPOINT ["ummkd"]

FROM source AS cpu
RUN pip install --no-cache-dir --constraint requirements.lock .
WORKDIR /work
ENTRYPOINT ["ummkd"]

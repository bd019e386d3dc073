# Gatepost for a Postgres elsewhere; docker-compose.yml brings one along. See docs/docker.md.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# The dependencies before the source, so that a change of the source does not fetch them again.
COPY pyproject.toml ./
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
print(*p["build-system"]["requires"], sep="\n", file=open("builder.txt", "w")); \
print(*p["project"]["dependencies"], sep="\n", file=open("dependencies.txt", "w"))' \
 && pip install -r builder.txt \
 && python -m venv --without-pip /opt/gatepost \
 && pip --python /opt/gatepost/bin/python install -r dependencies.txt
COPY README.md LICENSE ./
COPY migrations migrations
COPY src src
# The embedded Postgres stays out: a container gets its database over the network.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheel . \
 && pip --python /opt/gatepost/bin/python install --no-deps wheel/*.whl

FROM python:3.13-slim
ENV PATH=/opt/gatepost/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gatepost
COPY --from=build /opt/gatepost /opt/gatepost
# Nobody may write to the file system later, and the base image has no bytecode: compile what is used now.
RUN python -c 'import alembic.command, gatepost.workers, http.client' && gatepost routes
ENV PYTHONDONTWRITEBYTECODE=1 GATEPOST_WEBSERVER__HOST=0.0.0.0
# A config.json mounted here is read.
WORKDIR /etc/gatepost
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Not urllib: it would ask the proxy that the environment may name.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-I", "-c", "\
import http.client, os, sys; \
ports = map(os.environ.get, ('GATEPOST_WEBSERVER__OPERATOR_PORT', 'GATEPOST_WEBSERVER__PORT')); \
c = http.client.HTTPConnection('127.0.0.1', int(next(filter(None, ports), 8000)), timeout=4); \
c.request('GET', '/health/ready'); \
sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["gatepost"]
CMD ["run"]

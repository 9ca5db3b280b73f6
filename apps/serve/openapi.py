"""The service in the words of OpenAPI 3, and a page that shows them without the internet (Swagger UI, installed with kit)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from apps.serve import people
from apps.serve.model import Model
from apps.serve.repository import Repository

SAFE_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
)
_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>kit serve</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="page"></div><script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script></body>
</html>
"""
_START = b"""window.onload = () =>
  SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null});
"""
_FILES = {
    "/docs/swagger-ui.css": "text/css",
    "/docs/swagger-ui-bundle.js": "text/javascript",
}
_VERSIONED = (
    ("get", "", "Metadata: inputs, outputs, versions"),
    ("get", "/ready", "Whether it is ready"),
)


def page(path: str) -> tuple[bytes, str] | None:
    """Return body and type of the page's files; None for another path."""
    if path in {"/docs", "/docs/"}:
        return _PAGE, "text/html; charset=utf-8"
    if path == "/docs/start.js":
        return _START, "text/javascript"
    if path in _FILES:
        return _file(path.rpartition("/")[2]), _FILES[path]
    return None


def document(repository: Repository, *, needs_key: bool) -> dict[str, Any]:
    """Return the description of every route, with requests of the models that are ready."""
    paths: dict[str, Any] = {
        "/v2/health/live": {"get": _operation("Whether the server lives", "Server")},
        "/v2/health/ready": {"get": _operation("Whether every model is ready", "Server")},
        "/v2": {"get": _operation("Metadata of the server", "Server")},
        "/metrics": {"get": _operation("Figures for Prometheus", "Server")},
        "/v2/repository/index": {"post": _operation("All models and their states", "Server", body={})},
    }
    for name in dict.fromkeys(entry.name for entry in repository.entries if entry.model is not None):
        paths |= _of_model(repository.model(name))
    found: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": "kit serve",
            "version": "2",
            "description": "Models over the Open Inference Protocol v2 (`infer`), and as people ask (`predict`).",
        },
        "paths": paths,
    }
    if needs_key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
    return found


def _of_model(model: Model) -> dict[str, Any]:
    base = f"/v2/models/{model.name}"
    paths = {f"{base}{tail}": {verb: _operation(said, model.name)} for verb, tail, said in _VERSIONED}
    infer = _operation("Tensors in, tensors out", model.name, body=people.infer_example(model))
    paths[f"{base}/infer"] = {"post": infer}
    schema = _operation("What it takes, with requests to send as they are", model.name)
    paths[f"/v1/models/{model.name}/schema"] = {"get": schema}
    example = people.predict_example(model)
    if example is not None:
        kinds = people.takes(model.task)
        said = "What people have in, labels and numbers out"
        paths[f"/v1/models/{model.name}/predict"] = {"post": _operation(said, model.name, body=example, kinds=kinds)}
    return paths


def _operation(summary: str, tag: str, *, body: Any = None, kinds: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": summary,
        "tags": [tag],
        "responses": {
            "200": {"description": "The answer"},
            "default": {
                "description": "Why there is none",
                "content": {
                    "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
                },
            },
        },
    }
    if body is not None:
        content: dict[str, Any] = {people.JSON: {"schema": {"type": "object"}, "example": body}}
        for kind in kinds or []:
            if kind != people.JSON:
                content[kind] = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": content}
    return found


@cache
def _file(name: str) -> bytes:
    from swagger_ui_bundle import swagger_ui_path

    return (Path(swagger_ui_path) / name).read_bytes()

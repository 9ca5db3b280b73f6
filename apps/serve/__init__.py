"""A bundle as a service: the Open Inference Protocol v2 over HTTP and gRPC, and plain questions for people.

```
server      uvicorn: sockets, TLS, slow clients, signals, workers
  quick     small questions, from the parser to a model's queue and back
  app       one ASGI callable: who may ask, how much, and which route answers
    infer   the protocol's questions and answers: JSON and binary        (protocol)
    people  what a task takes: a picture, a text, a row; its schema      (people, openapi)
    admin   health, metadata, repository, metrics
  grpc      the same models over gRPC
repository  names and versions, loaded, proved on their golden samples, swapped
  model     one version: an open engine, its batcher and its figures
    batcher what has arrived goes into one call
```
"""

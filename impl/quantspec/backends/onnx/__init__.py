"""ONNX: ``graphs`` has operations as models of single operators, which ``reference`` runs on the onnx package's
evaluator and ``runtime`` on ONNX Runtime. Needs the extra ``onnx``; only the registry names it, and it is imported in
workers alone."""

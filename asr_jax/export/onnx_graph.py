"""An ONNX graph, built node by node: values are names, and a layer is a function of them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

from asr_jax.export.format_version import ABOUT

# The first operator set with LayerNormalization, and its file format, which old runtimes can read.
OPSET = 17
IR_VERSION = 8

Value = str
# An operand that is not a value is a constant: floats are float32, integers int64.
Operand = Value | np.ndarray | float | Sequence[int]
Attribute = int | float | Sequence[int]


class Graph:
    """A graph of nodes in the order of their addition; equal constants are stored once."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[bytes, onnx.TensorProto] = {}

    def input(self, name: str, dtype: type, shape: Sequence[int | str]) -> Value:
        """Add an input of the graph; a named axis may have any size."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, value: Value, dtype: type, shape: Sequence[int | str]) -> None:
        """Make `value` an output of the graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(_value_info(name, dtype, shape))

    def __call__(self, operator: str, *operands: Operand, **attributes: Attribute) -> Value:
        """Add a node with one result, and return the result."""
        return self.split(operator, 1, *operands, **attributes)[0]

    def split(
        self, operator: str, results: int, *operands: Operand, **attributes: Attribute
    ) -> list[Value]:
        """Add a node with several results, and return them."""
        names = [f"{operator}_{len(self._nodes)}_{i}" for i in range(results)]
        inputs = [x if isinstance(x, Value) else self._constant(x) for x in operands]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def save(self, path: Path, metadata: Mapping[str, str | int]) -> None:
        """Write the graph, after ONNX's checker has accepted its shapes and types."""
        graph = helper.make_graph(
            self._nodes, path.stem, self._inputs, self._outputs, list(self._constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="asr_jax",
        )
        properties = ABOUT | {key: str(value) for key, value in metadata.items()}
        helper.set_model_props(model, properties)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)

    def _constant(self, value: np.ndarray | float | Sequence[int]) -> Value:
        array = np.array(value, np.float32 if isinstance(value, float) else None, order="C")
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name


def _value_info(name: str, dtype: type, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)

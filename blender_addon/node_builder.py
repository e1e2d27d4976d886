# SPDX-License-Identifier: GPL-3.0-or-later
"""Node trees written as formulas: sockets with arithmetic, for geometry and shader trees alike."""

from typing import Any

import bpy

Operand = Any  # a Socket, a number, a tuple of three numbers, a text


class Socket:
    """An output socket that can be added, multiplied, ...; each operation adds a node to the tree.

    Numbers and vectors mix as in maths: number times vector scales the vector.
    """

    def __init__(self, nodes: "NodeBuilder", socket: bpy.types.NodeSocket) -> None:
        self.nodes = nodes
        self.socket = socket

    def __add__(self, other: Operand) -> "Socket":
        return self.nodes.arithmetic("ADD", self, other)

    def __sub__(self, other: Operand) -> "Socket":
        return self.nodes.arithmetic("SUBTRACT", self, other)

    def __rsub__(self, other: Operand) -> "Socket":
        return self.nodes.arithmetic("SUBTRACT", other, self)

    def __mul__(self, other: Operand) -> "Socket":
        if is_vector(self) and not is_vector(other):
            return self.nodes.vector_math("SCALE", self, scale=other)
        if is_vector(other) and not is_vector(self):
            return self.nodes.vector_math("SCALE", other, scale=self)
        return self.nodes.arithmetic("MULTIPLY", self, other)

    def __truediv__(self, other: Operand) -> "Socket":
        if is_vector(self) and not is_vector(other):
            return self * (1.0 / other)
        return self.nodes.arithmetic("DIVIDE", self, other)

    def __rtruediv__(self, other: Operand) -> "Socket":
        return self.nodes.arithmetic("DIVIDE", other, self)

    def __neg__(self) -> "Socket":
        return self * -1.0

    __radd__ = __add__
    __rmul__ = __mul__


def is_vector(operand: Operand) -> bool:
    """Whether an operand has three parts."""
    if isinstance(operand, Socket):
        return operand.socket.type in {"VECTOR", "RGBA"}
    return isinstance(operand, tuple)


class NodeBuilder:
    """Adds nodes to one tree."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        self.tree = tree

    def node(self, kind: str, inputs: dict[str, Operand] | None = None, **properties: Any) -> bpy.types.Node:
        """Add a node of class `kind`; `inputs` go by the sockets' identifiers, which are the same in all languages."""
        node = self.tree.nodes.new(kind)
        for name, value in properties.items():
            setattr(node, name, value)
        sockets = {socket.identifier: socket for socket in node.inputs}
        for identifier, operand in (inputs or {}).items():
            self.put(sockets[identifier], operand)
        return node

    def put(self, socket: bpy.types.NodeSocket, operand: Operand) -> None:
        """Feed an input socket from another socket or with a constant."""
        if isinstance(operand, Socket):
            self.tree.links.new(operand.socket, socket)
        else:
            socket.default_value = operand

    def out(self, node: bpy.types.Node, identifier: str | None = None) -> Socket:
        """An output of a node: the one with this identifier, else the first that is in use."""
        usable = (s for s in node.outputs if (s.identifier == identifier if identifier else s.enabled))
        return Socket(self, next(usable))

    def value(self, kind: str, inputs: dict[str, Operand] | None = None, **properties: Any) -> Socket:
        """First output in use of a new node."""
        return self.out(self.node(kind, inputs, **properties))

    # Arithmetic

    def math(self, operation: str, *operands: Operand, clamp: bool = False) -> Socket:
        """Math node on numbers."""
        node = self.node("ShaderNodeMath", operation=operation, use_clamp=clamp)
        for socket, operand in zip(node.inputs, operands, strict=False):
            self.put(socket, operand)
        return self.out(node)

    def vector_math(self, operation: str, *operands: Operand, scale: Operand | None = None) -> Socket:
        """Vector Math node; the result may be a number (dot product, length)."""
        node = self.node("ShaderNodeVectorMath", operation=operation)
        for socket, operand in zip(node.inputs, operands, strict=False):
            self.put(socket, operand)
        if scale is not None:
            self.put(node.inputs["Scale"], scale)
        return self.out(node)

    def arithmetic(self, operation: str, a: Operand, b: Operand) -> Socket:
        """Add, subtract, multiply or divide two numbers, or two vectors part by part."""
        if is_vector(a) or is_vector(b):
            return self.vector_math(operation, a, b)
        return self.math(operation, a, b)

    def dot(self, a: Operand, b: Operand) -> Socket:
        """Dot product."""
        return self.vector_math("DOT_PRODUCT", a, b)

    def cross(self, a: Operand, b: Operand) -> Socket:
        """Cross product."""
        return self.vector_math("CROSS_PRODUCT", a, b)

    def length(self, a: Operand) -> Socket:
        """Length of a vector."""
        return self.vector_math("LENGTH", a)

    def normalize(self, a: Operand) -> Socket:
        """Vector of length 1."""
        return self.vector_math("NORMALIZE", a)

    def exp(self, a: Operand) -> Socket:
        """The exponential function."""
        return self.math("EXPONENT", a)

    def sqrt(self, a: Operand) -> Socket:
        """Square root."""
        return self.math("SQRT", a)

    def maximum(self, a: Operand, b: Operand) -> Socket:
        """The larger of two numbers, or of two vectors part by part."""
        return self.arithmetic("MAXIMUM", a, b)

    def minimum(self, a: Operand, b: Operand) -> Socket:
        """The smaller of two numbers, or of two vectors part by part."""
        return self.arithmetic("MINIMUM", a, b)

    def vector(self, x: Operand, y: Operand, z: Operand) -> Socket:
        """Vector of three numbers."""
        return self.value("ShaderNodeCombineXYZ", {"X": x, "Y": y, "Z": z})

    def parts(self, vector: Operand) -> tuple[Socket, Socket, Socket]:
        """The three numbers of a vector."""
        node = self.node("ShaderNodeSeparateXYZ", {"Vector": vector})
        return self.out(node, "X"), self.out(node, "Y"), self.out(node, "Z")

    def mix(self, data_type: str, weight: Operand, a: Operand, b: Operand) -> Socket:
        """From `a` at weight 0 to `b` at weight 1: FLOAT and VECTOR in a straight line, ROTATION by slerp."""
        suffix = data_type.capitalize()
        inputs = {"Factor_Float": weight, f"A_{suffix}": a, f"B_{suffix}": b}
        node = self.node("ShaderNodeMix", inputs, data_type=data_type)
        return self.out(node, f"Result_{suffix}")

    # Geometry trees

    def named(self, name: Operand, data_type: str) -> Socket:
        """Read an attribute; where it is missing, 0."""
        node = self.node("GeometryNodeInputNamedAttribute", {"Name": name}, data_type=data_type)
        return self.out(node)

    def store(self, geometry: Socket, name: str, data_type: str, value: Operand, domain: str = "POINT") -> Socket:
        """Write an attribute."""
        node = self.node(
            "GeometryNodeStoreNamedAttribute", {"Geometry": geometry, "Name": name}, data_type=data_type, domain=domain
        )
        self.put(next(s for s in node.inputs if s.enabled and s.identifier == "Value"), value)
        return self.out(node)

    def sample_index(self, geometry: Socket, data_type: str, value: Operand, index: Operand) -> Socket:
        """Value of a field at one of the points of another geometry."""
        inputs = {"Geometry": geometry, "Value": value, "Index": index}
        return self.value("GeometryNodeSampleIndex", inputs, data_type=data_type, domain="POINT")

    def capture(self, geometry: Socket, **fields: tuple[str, Operand]) -> tuple[Socket, dict[str, Socket]]:
        """Evaluate fields, given as `name=(type, field)`, on the points of a geometry, all in one go."""
        node = self.node("GeometryNodeCaptureAttribute", {"Geometry": geometry}, domain="POINT")
        for name, (data_type, _) in fields.items():
            node.capture_items.new(data_type, name)
        for name, (_, field) in fields.items():
            self.put(node.inputs[name], field)
        captured = {name: Socket(self, node.outputs[name]) for name in fields}
        return Socket(self, node.outputs["Geometry"]), captured

    def remove(self, geometry: Socket, pattern: str) -> Socket:
        """Remove all attributes whose names fit a pattern with `*`."""
        node = self.node("GeometryNodeRemoveAttribute", {"Geometry": geometry, "Name": pattern})
        if "Pattern Mode" in node.inputs:  # Blender 5.0
            node.inputs["Pattern Mode"].default_value = "Wildcard"
        else:
            node.pattern_mode = "WILDCARD"
        return self.out(node)

    def arrange(self, column_width: int = 190, row_height: int = 190) -> None:
        """Lay the nodes out in columns, each node just left of what uses it, so that people can read the tree."""
        columns: dict[bpy.types.Node, int] = {}
        users: dict[bpy.types.Node, list[bpy.types.Node]] = {node: [] for node in self.tree.nodes}
        for link in self.tree.links:
            users[link.from_node].append(link.to_node)

        def column(node: bpy.types.Node) -> int:
            if node not in columns:
                columns[node] = max((column(user) + 1 for user in users[node]), default=0)
            return columns[node]

        filled: dict[int, int] = {}
        places: list[int] = []
        for node in self.tree.nodes:
            x = column(node)
            places += [-x * column_width, -filled.get(x, 0) * row_height]
            filled[x] = filled.get(x, 0) + 1
        self.tree.nodes.foreach_set("location", places)  # each place by itself would update the whole file

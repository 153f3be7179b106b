// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='fuse{without=siblings}' | FileCheck %s --check-prefix=APART

// gate and up are one product whose columns alternate, so their product is local to a tile.
// CHECK: nn.fused "mlp.gate_up" matmul
// CHECK: nn.linear
// CHECK: nn.linear
// CHECK: nn.activation silu
// CHECK: nn.mul
// CHECK: reason = "mlp.gate, mlp.up and mlp.gate.activation are never written; the input is read once"
// CHECK: nn.fused "mlp.down" matmul
// APART: nn.fused "mlp.gate" matmul
// APART: nn.fused "mlp.up" matmul
func.func @layer(%layer: index, %h: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %wg = nn.param "layers.*.mlp.gate.weight"[%layer] : tensor<16x8xf32>
  %wu = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<16x8xf32>
  %wd = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<8x16xf32>
  %gate = nn.linear %h, %wg : (tensor<1x2x8xf32>, tensor<16x8xf32>) -> tensor<1x2x16xf32>
  %up = nn.linear %h, %wu : (tensor<1x2x8xf32>, tensor<16x8xf32>) -> tensor<1x2x16xf32>
  %act = nn.activation silu %gate : tensor<1x2x16xf32>
  %glu = nn.mul %act, %up : tensor<1x2x16xf32>
  %down = nn.linear %glu, %wd : (tensor<1x2x16xf32>, tensor<8x16xf32>) -> tensor<1x2x8xf32>
  return %down : tensor<1x2x8xf32>
}

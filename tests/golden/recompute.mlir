// RUN: lapidary-opt %s --pass-pipeline='recompute{policy=selective}' | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='recompute{policy=full}' | FileCheck %s --check-prefix=FULL
// RUN: lapidary-opt %s --pass-pipeline='recompute{policy=none}' | FileCheck %s --check-prefix=NONE
// RUN: not lapidary-opt %s --pass-pipeline='recompute{policy=some}' 2>&1 | FileCheck %s --check-prefix=WRONG

// Selective: the softmax's result is made again from queries and keys, the values are kept.
// CHECK-LABEL: @layer(
// CHECK: nn.save "input"
// CHECK-NOT: nn.save "softmax"
// CHECK: nn.save "values"
// CHECK-LABEL: @layer_backward(
// CHECK: nn.scores
// CHECK: nn.softmax %
// CHECK: nn.softmax_dx
// CHECK-LABEL: @main(
// CHECK: nn.repeat @layer_backward

// Full: the layer keeps its input only.
// FULL-LABEL: @layer(
// FULL: nn.save "input"
// FULL-NOT: nn.save
// FULL-LABEL: @layer_backward(
// FULL: nn.softmax %
// FULL: nn.values

// NONE-LABEL: @layer_backward(
// NONE-NOT: nn.softmax %

// WRONG: recompute takes policy=none|selective|full, not `policy=some`
module attributes {nn.batch = 1 : i64, nn.seq = 2 : i64, nn.cached = 0 : i64, nn.mode = "train", nn.model = "tiny"} {
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %kx = nn.save "input"[%layer] %x : tensor<1x2x8xf32>
  %s = nn.scores %x, %x heads = 1 kv_heads = 1 : (tensor<1x2x8xf32>, tensor<1x2x8xf32>) -> tensor<1x1x2x2xf32>
  %p = nn.softmax %s : tensor<1x1x2x2xf32>
  %kp = nn.save "softmax"[%layer] %p : tensor<1x1x2x2xf32>
  %y = nn.values %p, %x heads = 1 kv_heads = 1 : (tensor<1x1x2x2xf32>, tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %ky = nn.save "values"[%layer] %y : tensor<1x2x8xf32>
  %w = nn.param "layers.*.w"[%layer] : tensor<8x8xf32>
  %h = nn.linear %y, %w : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  return %h : tensor<1x2x8xf32>
}
func.func @layer_backward(%layer: index, %dy: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %w = nn.param "layers.*.w"[%layer] : tensor<8x8xf32>
  %dh = nn.linear_dx %dy, %w : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %y = nn.saved "values"[%layer] : tensor<1x2x8xf32>
  %dw = nn.linear_dw %dy, %y : (tensor<1x2x8xf32>, tensor<1x2x8xf32>) -> tensor<8x8xf32>
  %g = nn.gradient "layers.*.w"[%layer] %dw : tensor<8x8xf32>
  %x = nn.saved "input"[%layer] : tensor<1x2x8xf32>
  %p = nn.saved "softmax"[%layer] : tensor<1x1x2x2xf32>
  %dp = nn.scores %dh, %x heads = 1 kv_heads = 1 : (tensor<1x2x8xf32>, tensor<1x2x8xf32>) -> tensor<1x1x2x2xf32>
  %ds = nn.softmax_dx %p, %dp : tensor<1x1x2x2xf32>
  %dx = nn.values %ds, %x heads = 1 kv_heads = 1 : (tensor<1x1x2x2xf32>, tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  return %dx : tensor<1x2x8xf32>
}
func.func @main(%ids: tensor<1x2xi32>, %labels: tensor<1x2xi32>) -> tensor<1xf32> {
  %t = nn.param "embed.weight" : tensor<8x8xf32>
  %x = nn.embed %ids, %t : (tensor<1x2xi32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %h = nn.repeat @layer times = 2 (%x) : (tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %loss = nn.cross_entropy %h, %labels : (tensor<1x2x8xf32>, tensor<1x2xi32>) -> tensor<1xf32>
  %dh = nn.cross_entropy_dx %h, %labels : (tensor<1x2x8xf32>, tensor<1x2xi32>) -> tensor<1x2x8xf32>
  %dx = nn.repeat @layer_backward times = 2 reverse (%dh) : (tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %dt = nn.embed_dw %ids, %dx rows = 8 : (tensor<1x2xi32>, tensor<1x2x8xf32>) -> tensor<8x8xf32>
  %g = nn.gradient "embed.weight" %dt : tensor<8x8xf32>
  return %loss : tensor<1xf32>
}
}

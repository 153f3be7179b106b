// RUN: lapidary-opt %s --pass-pipeline=mup-fold | FileCheck %s

// With a head of its own, tables and head carry the factors; norms and branches stay as they are.
// CHECK-LABEL: @layer
// CHECK: nn.param "layers.*.mlp.up.weight"[%{{.*}}] : tensor<8x8xf32>
// CHECK: nn.norm rms {{.*}} eps = 1.0e-05
func.func private @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %w = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<8x8xf32>
  %g = nn.param "layers.*.mlp_norm.weight"[%layer] : tensor<8xf32>
  %h = nn.norm rms %x, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %d = nn.linear %h, %w : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %y = nn.add %x, %d : tensor<1x2x8xf32>
  return %y : tensor<1x2x8xf32>
}

// CHECK-LABEL: @main
// CHECK: nn.param "embed.weight" scale = 4.0
// CHECK: nn.param "position.weight" scale = 4.0
// CHECK: nn.param "final_norm.weight" : tensor<8xf32>
// CHECK: nn.norm rms {{.*}} eps = 1.0e-05
// CHECK: nn.param "head.weight" scale = 0.5
// CHECK: nn.param "head.bias" scale = 0.5
// CHECK-NOT: nn.scale
func.func @main(%ids: tensor<1x2xi32>) -> tensor<1x2x32xf32> {
  %table = nn.param "embed.weight" : tensor<32x8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<32x8xf32>) -> tensor<1x2x8xf32>
  %positions = nn.param "position.weight" : tensor<4x8xf32>
  %p = nn.position %e, %positions : (tensor<1x2x8xf32>, tensor<4x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.scale %p by 4.000000e+00 as "mup.embedding" : tensor<1x2x8xf32>
  %y = nn.repeat @layer times = 2 (%x) : (tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %g = nn.param "final_norm.weight" : tensor<8xf32>
  %h = nn.norm rms %y, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %wh = nn.param "head.weight" : tensor<32x8xf32>
  %bh = nn.param "head.bias" : tensor<32xf32>
  %l0 = nn.linear %h, %wh : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %l1 = nn.bias %l0, %bh : (tensor<1x2x32xf32>, tensor<32xf32>) -> tensor<1x2x32xf32>
  %scaled = nn.scale %l1 by 5.000000e-01 as "mup.output" : tensor<1x2x32xf32>
  return %scaled : tensor<1x2x32xf32>
}

// RUN: lapidary-opt %s --pass-pipeline=hoist-scales | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline=hoist-scales,fuse | FileCheck %s --check-prefix=FUSED

// The factor on 32 logits goes to the 8 features in front of the head, and from there into the norm's kernel.
// CHECK-LABEL: @main
// CHECK: nn.norm
// CHECK-NEXT: %[[H:.*]] = nn.scale %{{.*}} by 0.5 as "mup.output" : tensor<1x2x8xf32>
// CHECK-NEXT: %[[L:.*]] = nn.linear %[[H]]
// CHECK-NEXT: return %[[L]]
// FUSED: nn.fused "final_norm" row
// FUSED: nn.norm
// FUSED-NEXT: nn.scale
// FUSED: nn.fused "head" matmul
func.func @main(%x: tensor<1x2x8xf32>) -> tensor<1x2x32xf32> {
  %g = nn.param "final_norm.weight" : tensor<8xf32>
  %w = nn.param "head.weight" : tensor<32x8xf32>
  %h = nn.norm rms %x, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %l = nn.linear %h, %w : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %y = nn.scale %l by 5.000000e-01 as "mup.output" : tensor<1x2x32xf32>
  return %y : tensor<1x2x32xf32>
}

// A result that is narrower than the input keeps its factor.
// CHECK-LABEL: @narrow
// CHECK: nn.linear
// CHECK-NEXT: nn.scale
func.func @narrow(%x: tensor<1x2x8xf32>) -> tensor<1x2x4xf32> {
  %w = nn.param "down.weight" : tensor<4x8xf32>
  %l = nn.linear %x, %w : (tensor<1x2x8xf32>, tensor<4x8xf32>) -> tensor<1x2x4xf32>
  %y = nn.scale %l by 5.000000e-01 as "residual" : tensor<1x2x4xf32>
  return %y : tensor<1x2x4xf32>
}

// Where no norm stands in front, the factor is free behind the head.
// CHECK-LABEL: @bare
// CHECK: nn.linear
// CHECK-NEXT: nn.scale
func.func @bare(%x: tensor<1x2x8xf32>) -> tensor<1x2x32xf32> {
  %w = nn.param "head.weight" : tensor<32x8xf32>
  %l = nn.linear %x, %w : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %y = nn.scale %l by 5.000000e-01 as "output" : tensor<1x2x32xf32>
  return %y : tensor<1x2x32xf32>
}

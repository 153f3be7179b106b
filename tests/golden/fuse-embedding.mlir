// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s

// The lookup makes whole rows, so position, factor and norm work on them before anything is written.
// CHECK: nn.fused "embed" gather
// CHECK: nn.embed
// CHECK-NEXT: nn.position
// CHECK-NEXT: nn.scale
// CHECK-NEXT: nn.norm
// CHECK-NOT: nn.fused
func.func @main(%ids: tensor<1x2xi32>) -> tensor<1x2x8xf32> {
  %table = nn.param "embed.weight" : tensor<32x8xf32>
  %positions = nn.param "position.weight" : tensor<4x8xf32>
  %g = nn.param "final_norm.weight" : tensor<8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<32x8xf32>) -> tensor<1x2x8xf32>
  %p = nn.position %e, %positions : (tensor<1x2x8xf32>, tensor<4x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.scale %p by 4.000000e+00 as "mup.embedding" : tensor<1x2x8xf32>
  %h = nn.norm rms %x, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  return %h : tensor<1x2x8xf32>
}

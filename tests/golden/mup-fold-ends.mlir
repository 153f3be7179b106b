// RUN: lapidary-opt %s --pass-pipeline=mup-fold | FileCheck %s

// A tied head without a norm before it: one table stands at both ends, so both factors stay.
// CHECK: nn.param "embed.weight" : tensor<32x8xf32>
// CHECK: nn.scale {{.*}} by 4.0 as "mup.embedding"
// CHECK: nn.linear
// CHECK: nn.scale {{.*}} by 0.5 as "mup.output"
func.func @main(%ids: tensor<1x2xi32>) -> tensor<1x2x32xf32> {
  %table = nn.param "embed.weight" : tensor<32x8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<32x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.scale %e by 4.000000e+00 as "mup.embedding" : tensor<1x2x8xf32>
  %l = nn.linear %x, %table : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %scaled = nn.scale %l by 5.000000e-01 as "mup.output" : tensor<1x2x32xf32>
  return %scaled : tensor<1x2x32xf32>
}

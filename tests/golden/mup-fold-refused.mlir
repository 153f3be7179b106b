// RUN: not lapidary-opt %s --pass-pipeline=mup-fold 2>&1 | FileCheck %s

// The head reads the divided stream without a norm, and the factor on the logits has no norm to go into.
// CHECK-DAG: mup-fold-refused.mlir:[[#@LINE+6]]:{{.*}}error: mup-fold: head (linear) reads the residual stream without a norm before it
// CHECK-DAG: mup-fold-refused.mlir:[[#@LINE+4]]:{{.*}}error: mup-fold: embed.scale is needed by others without the factor 0.5
func.func @main(%ids: tensor<1x2xi32>) -> (tensor<1x2x8xf32>, tensor<1x2x32xf32>) {
  %table = nn.param "embed.weight" : tensor<32x8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<32x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.scale %e by 4.000000e+00 as "mup.embedding" : tensor<1x2x8xf32>
  %l = nn.linear %x, %table : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %scaled = nn.scale %l by 5.000000e-01 as "mup.output" : tensor<1x2x32xf32>
  return %x, %scaled : tensor<1x2x8xf32>, tensor<1x2x32xf32>
}

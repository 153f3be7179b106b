// RUN: not lapidary-opt %s --pass-pipeline=mup-fold 2>&1 | FileCheck %s

// An activation reads the stream without a norm, so the stream cannot run divided; and the factor on the logits meets
// an activation that it does not pass through.
// CHECK: mup-fold-refused.mlir:[[#@LINE+7]]:{{.*}}error: mup-fold: embed.activation (activation) reads the residual stream without a norm before it
// CHECK: mup-fold-refused.mlir:[[#@LINE+9]]:{{.*}}error: mup-fold: a factor 0.5 does not pass through head.activation (activation)
func.func @main(%ids: tensor<1x2xi32>) -> tensor<1x2x32xf32> {
  %table = nn.param "embed.weight" : tensor<32x8xf32>
  %g = nn.param "final_norm.weight" : tensor<8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<32x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.scale %e by 4.000000e+00 as "mup.embedding" : tensor<1x2x8xf32>
  %a = nn.activation silu %x : tensor<1x2x8xf32>
  %h = nn.norm rms %a, %g eps = 1.000000e-05 : (tensor<1x2x8xf32>, tensor<8xf32>) -> tensor<1x2x8xf32>
  %l = nn.linear %h, %table : (tensor<1x2x8xf32>, tensor<32x8xf32>) -> tensor<1x2x32xf32>
  %s = nn.activation relu %l : tensor<1x2x32xf32>
  %scaled = nn.scale %s by 5.000000e-01 as "mup.output" : tensor<1x2x32xf32>
  return %scaled : tensor<1x2x32xf32>
}

// RUN: lapidary-opt %s --pass-pipeline=fuse,lower-to-cuda | FileCheck %s

// A function that is repeated in two places has kernels for both. What the caller gave stays: the first repeat works
// on a copy.
// CHECK: cuda.kernel @layer_norm row
// CHECK: cuda.kernel @layer_norm_2 row
// CHECK-DAG: %[[IN:.*]] = cuda.buffer "ids" input
// CHECK-DAG: %[[OUT:.*]] = cuda.buffer "layers{{.*}}" output
// CHECK: cuda.launch @copy_0 {{.*}} (%[[IN]]) to
// CHECK: cuda.repeat times = 2
// CHECK: cuda.launch @layer_norm
// CHECK: cuda.repeat times = 3
// CHECK: cuda.launch @layer_norm_2 {{.*}} to (%[[OUT]])
func.func private @layer(%layer: index, %x: tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16> {
  %g = nn.param "norm.weight" : tensor<16xbf16>
  %h = nn.norm rms %x, %g eps = 1.000000e-05 : (tensor<1x8x16xbf16>, tensor<16xbf16>) -> tensor<1x8x16xbf16>
  return %h : tensor<1x8x16xbf16>
}
func.func @main(%x: tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16> {
  %y = nn.repeat @layer times = 2 (%x) : (tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16>
  %z = nn.repeat @layer times = 3 (%y) : (tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16>
  return %z : tensor<1x8x16xbf16>
}

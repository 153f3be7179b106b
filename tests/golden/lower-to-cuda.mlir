// RUN: lapidary-opt %s --pass-pipeline=fuse,lower-to-cuda | FileCheck %s
// RUN: not lapidary-opt %s --pass-pipeline=lower-to-cuda 2>&1 | FileCheck %s --check-prefix=UNFUSED
// RUN: not lapidary-opt %s --pass-pipeline='fuse,lower-to-cuda{arch=80}' 2>&1 | FileCheck %s --check-prefix=OPTION

// UNFUSED: lower-to-cuda.mlir:{{[0-9]+}}:{{[0-9]+}}: error: nn.norm is in no kernel: run `fuse` first
// OPTION: error: pipeline {{.*}}: lower-to-cuda takes arch=sm_NN, library=on|off, processors=N, not `arch=80`

// CHECK: cuda.program @module arch = "sm_80" arena_bytes = {{[0-9]+}} {
// CHECK: cuda.kernel @layer_mlp_norm row generated
// CHECK: nn.norm
// CHECK: cuda.kernel @layer_mlp_up matmul generated
// CHECK: nn.linear
// CHECK-NEXT: nn.activation
// CHECK: cuda.kernel @layer_mlp_down matmul
// CHECK: nn.add
// CHECK-DAG: cuda.buffer "layers.*.mlp.up.weight" param bytes = 8192 layers = 4 : memref<64x16xbf16>
// CHECK-DAG: %[[X:.*]] = cuda.buffer "layers" output bytes = 256
// CHECK-DAG: %[[H:.*]] = cuda.buffer "layer.mlp_norm" arena bytes = 256 offset = {{[0-9]+}}
// CHECK: cuda.repeat times = 4 (%{{.*}}: index) {
// CHECK: cuda.launch @layer_mlp_norm grid = [{{.*}}] block = [{{.*}}] {{.*}}(%[[X]], %{{.*}}) to (%[[H]])
// CHECK: cuda.launch @layer_mlp_down {{.*}} to (%[[X]])
// CHECK-NOT: func.func
func.func private @layer(%layer: index, %x: tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16> {
  %g = nn.param "layers.*.mlp_norm.weight"[%layer] : tensor<16xbf16>
  %h = nn.norm rms %x, %g eps = 1.000000e-05 : (tensor<1x8x16xbf16>, tensor<16xbf16>) -> tensor<1x8x16xbf16>
  %wu = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<64x16xbf16>
  %u = nn.linear %h, %wu : (tensor<1x8x16xbf16>, tensor<64x16xbf16>) -> tensor<1x8x64xbf16>
  %a = nn.activation gelu %u : tensor<1x8x64xbf16>
  %wd = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<16x64xbf16>
  %d = nn.linear %a, %wd : (tensor<1x8x64xbf16>, tensor<16x64xbf16>) -> tensor<1x8x16xbf16>
  %y = nn.add %x, %d : tensor<1x8x16xbf16>
  return %y : tensor<1x8x16xbf16>
}
func.func @main(%x: tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16> {
  %y = nn.repeat @layer times = 4 (%x) : (tensor<1x8x16xbf16>) -> tensor<1x8x16xbf16>
  return %y : tensor<1x8x16xbf16>
}

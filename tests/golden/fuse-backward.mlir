// RUN: lapidary-opt %s --pass-pipeline=fuse | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='fuse{without=attention}' | FileCheck %s --check-prefix=WITHOUT

// The backward pass of attention is one kernel that makes the softmax again: three results leave it, and nothing of the
// scores' size. A weight's derivative is added into its gradient where it is made.
// CHECK: %{{.*}}:3 = nn.fused "{{.*}}" attention
// CHECK: nn.scores
// CHECK: nn.softmax
// CHECK: nn.softmax_dx
// CHECK: nn.mask_dx
// CHECK: nn.yield %{{.*}}, %{{.*}}, %{{.*}} : tensor<1x4x4xf32>, tensor<1x4x8xf32>, tensor<1x4x4xf32>
// CHECK: nn.fused "{{.*}}" matmul
// CHECK: nn.linear_dw
// CHECK-NEXT: nn.gradient "layers.*.attn.q.weight"
// CHECK: nn.fused "{{.*}}" matmul
// CHECK-NOT: tensor<1x2x4x4xf32>
// CHECK: return
// WITHOUT-NOT: attention(
// WITHOUT: nn.softmax_dx
func.func @layer_backward(%layer: index, %dy: tensor<1x4x8xf32>) -> tensor<1x4x8xf32> {
  %w = nn.param "layers.*.attn.q.weight"[%layer] : tensor<8x8xf32>
  %h = nn.saved "attn_norm"[%layer] : tensor<1x4x8xf32>
  %q = nn.saved "attn.q"[%layer] : tensor<1x4x8xf32>
  %k = nn.saved "attn.k"[%layer] : tensor<1x4x4xf32>
  %v = nn.saved "attn.v"[%layer] : tensor<1x4x4xf32>
  %s = nn.scores %q, %k heads = 2 kv_heads = 1 : (tensor<1x4x8xf32>, tensor<1x4x4xf32>) -> tensor<1x2x4x4xf32>
  %c = nn.scale %s by 0.5 as "attention" : tensor<1x2x4x4xf32>
  %m = nn.mask %c causal : tensor<1x2x4x4xf32>
  %p = nn.softmax %m : tensor<1x2x4x4xf32>
  %dp = nn.scores %dy, %v heads = 2 kv_heads = 1 : (tensor<1x4x8xf32>, tensor<1x4x4xf32>) -> tensor<1x2x4x4xf32>
  %dv = nn.values_dv %p, %dy heads = 2 kv_heads = 1 : (tensor<1x2x4x4xf32>, tensor<1x4x8xf32>) -> tensor<1x4x4xf32>
  %ds = nn.softmax_dx %p, %dp : tensor<1x2x4x4xf32>
  %dm = nn.mask_dx %ds causal : tensor<1x2x4x4xf32>
  %dc = nn.scale %dm by 0.5 as "attention" : tensor<1x2x4x4xf32>
  %dq = nn.values %dc, %k heads = 2 kv_heads = 1 : (tensor<1x2x4x4xf32>, tensor<1x4x4xf32>) -> tensor<1x4x8xf32>
  %dk = nn.values_dv %dc, %q heads = 2 kv_heads = 1 : (tensor<1x2x4x4xf32>, tensor<1x4x8xf32>) -> tensor<1x4x4xf32>
  %dw = nn.linear_dw %dq, %h : (tensor<1x4x8xf32>, tensor<1x4x8xf32>) -> tensor<8x8xf32>
  %g = nn.gradient "layers.*.attn.q.weight"[%layer] %dw : tensor<8x8xf32>
  %dh = nn.linear_dx %dq, %w : (tensor<1x4x8xf32>, tensor<8x8xf32>) -> tensor<1x4x8xf32>
  %dkv = nn.add %dk, %dv : tensor<1x4x4xf32>
  %kept = nn.save "dkv"[%layer] %dkv : tensor<1x4x4xf32>
  return %dh : tensor<1x4x8xf32>
}

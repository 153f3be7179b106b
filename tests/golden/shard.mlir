// RUN: lapidary-opt %s --pass-pipeline='shard{tensor=2 rank=1}' | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='shard{pipeline=2 stage=1}' | FileCheck %s --check-prefix=LAST
// RUN: not lapidary-opt %s --pass-pipeline='shard{pipeline=3}' 2>&1 | FileCheck %s --check-prefix=DEEP
// RUN: not lapidary-opt %s --pass-pipeline='shard{ranks=2}' 2>&1 | FileCheck %s --check-prefix=WRONG

// Heads and hidden features are split, 3 hidden features into 2 and 1 with a row of zeros; the load-time factor stays.
// Both branches read the stream, so their summands are added before the sum over ranks.
// CHECK-LABEL: @layer(
// CHECK: nn.param "layers.*.attn.q.weight"[%{{.*}}] scale = 0.5 : tensor<4x8xf32>
// CHECK: nn.scores {{.*}} heads = 1 kv_heads = 1
// CHECK: nn.param "layers.*.attn.out.weight"[%{{.*}}] : tensor<8x4xf32>
// CHECK: nn.param "layers.*.mlp.up.weight"[%{{.*}}] : tensor<2x8xf32>
// CHECK: [[BRANCHES:%.*]] = nn.add
// CHECK-NEXT: [[SUM:%.*]] = nn.all_reduce [[BRANCHES]]
// CHECK-NEXT: nn.add %{{.*}}, [[SUM]]
// CHECK-NOT: nn.all_reduce

// The second rank has rows 3 and 4 of 5, and a row of zeros.
// CHECK-LABEL: @main(
// CHECK: nn.embed_part {{.*}} first = 3 : (tensor<1x2xi32>, tensor<3x8xf32>)
// CHECK: nn.all_reduce
// CHECK: nn.repeat @layer times = 2
// CHECK: nn.all_gather {{.*}} width = 5

// The last stage receives the stream, runs the second layer and the head.
// LAST-LABEL: @main(
// LAST-SAME: ) -> tensor<1x2x5xf32>
// LAST-NOT: nn.embed
// LAST: nn.receive from 0 : tensor<1x2x8xf32>
// LAST: nn.repeat @layer times = 1
// LAST: nn.linear

// DEEP: 3 pipeline stages for 2 layers
// WRONG: shard takes tensor=N rank=R pipeline=P stage=S chunks=C sequence=on|off, not `ranks=2`
module attributes {nn.batch = 1 : i64, nn.seq = 2 : i64, nn.cached = 0 : i64, nn.mode = "forward", nn.model = "tiny"} {
func.func @layer(%layer: index, %x: tensor<1x2x8xf32>) -> tensor<1x2x8xf32> {
  %wq = nn.param "layers.*.attn.q.weight"[%layer] scale = 0.5 : tensor<8x8xf32>
  %q = nn.linear %x, %wq : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %wk = nn.param "layers.*.attn.k.weight"[%layer] : tensor<8x8xf32>
  %k = nn.linear %x, %wk : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %s = nn.scores %q, %k heads = 2 kv_heads = 2 : (tensor<1x2x8xf32>, tensor<1x2x8xf32>) -> tensor<1x2x2x2xf32>
  %p = nn.softmax %s : tensor<1x2x2x2xf32>
  %o = nn.values %p, %k heads = 2 kv_heads = 2 : (tensor<1x2x2x2xf32>, tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %wo = nn.param "layers.*.attn.out.weight"[%layer] : tensor<8x8xf32>
  %a = nn.linear %o, %wo : (tensor<1x2x8xf32>, tensor<8x8xf32>) -> tensor<1x2x8xf32>
  %wu = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<3x8xf32>
  %u = nn.linear %x, %wu : (tensor<1x2x8xf32>, tensor<3x8xf32>) -> tensor<1x2x3xf32>
  %wd = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<8x3xf32>
  %m = nn.linear %u, %wd : (tensor<1x2x3xf32>, tensor<8x3xf32>) -> tensor<1x2x8xf32>
  %y = nn.add %x, %a : tensor<1x2x8xf32>
  %z = nn.add %y, %m : tensor<1x2x8xf32>
  return %z : tensor<1x2x8xf32>
}
func.func @main(%ids: tensor<1x2xi32>) -> tensor<1x2x5xf32> {
  %table = nn.param "embed.weight" : tensor<5x8xf32>
  %e = nn.embed %ids, %table : (tensor<1x2xi32>, tensor<5x8xf32>) -> tensor<1x2x8xf32>
  %x = nn.repeat @layer times = 2 (%e) : (tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
  %head = nn.param "head.weight" : tensor<5x8xf32>
  %logits = nn.linear %x, %head : (tensor<1x2x8xf32>, tensor<5x8xf32>) -> tensor<1x2x5xf32>
  return %logits : tensor<1x2x5xf32>
}
}

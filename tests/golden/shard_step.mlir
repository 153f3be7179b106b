// RUN: lapidary-opt %s --pass-pipeline='shard{tensor=2 rank=1}' | FileCheck %s
// RUN: lapidary-opt %s --pass-pipeline='shard{tensor=2 rank=0 sequence=on}' | FileCheck %s --check-prefix=ROWS
// RUN: lapidary-opt %s --pass-pipeline='shard{pipeline=2 stage=0}' | FileCheck %s --check-prefix=FIRST
// RUN: lapidary-opt %s --pass-pipeline='shard{pipeline=2 stage=1}' | FileCheck %s --check-prefix=LAST
// RUN: not lapidary-opt %s --pass-pipeline='shard{pipeline=2 chunks=2}' 2>&1 | FileCheck %s --check-prefix=RANGES

// A training step: hidden features are split, what goes back to the stream is summed where all of it is needed.
// CHECK-LABEL: @layer(
// CHECK: nn.linear {{.*}} tensor<2x8xf32>) -> tensor<1x4x2xf32>
// CHECK: nn.all_reduce
// CHECK-LABEL: @layer_backward(
// CHECK: nn.linear_dx {{.*}} -> tensor<1x4x2xf32>
// CHECK: nn.linear_dw {{.*}} -> tensor<8x2xf32>
// CHECK: nn.gradient "layers.*.mlp.down.weight"
// CHECK: nn.linear_dx {{.*}} -> tensor<1x4x8xf32>
// CHECK: nn.gradient "layers.*.mlp.up.weight"
// CHECK: nn.all_reduce

// The rank's words of the vocabulary: 3 and 4 of 5. The loss is made of all of them, its derivative goes back in parts.
// CHECK-LABEL: @main(
// CHECK: nn.all_gather {{.*}} width = 5
// CHECK: nn.cross_entropy_dx
// CHECK-NEXT: nn.take {{.*}} first = 3 length = 2 held = 3
// CHECK: nn.embed_part_dw {{.*}} first = 3 rows = 3

// Between layers a rank has two of the four rows.
// ROWS-LABEL: @layer(
// ROWS-SAME: tensor<1x2x8xf32>) -> tensor<1x2x8xf32>
// ROWS: nn.gather_rows {{.*}} batch = 1 seq = 4
// ROWS: nn.reduce_scatter {{.*}} ranks = 2
// ROWS-LABEL: @layer_backward(
// ROWS: nn.gather_rows
// ROWS: nn.reduce_scatter

// The first stage has its layer forwards and back, and its end of the model; the last the loss.
// FIRST-LABEL: @main(
// FIRST: nn.embed
// FIRST: nn.repeat @layer times = 1
// FIRST-NEXT: nn.send {{.*}} to 1 :
// FIRST-NEXT: nn.receive from 1 lane = 1
// FIRST-NEXT: nn.repeat @layer_backward times = 1 reverse
// FIRST: nn.gradient "embed.weight"
// FIRST-NOT: nn.cross_entropy

// LAST-LABEL: @main(
// LAST: nn.receive from 0 :
// LAST-NEXT: nn.repeat @layer times = 1
// LAST: nn.cross_entropy
// LAST: nn.repeat @layer_backward times = 1 reverse
// LAST-NEXT: nn.send {{.*}} to 0 lane = 1

// RANGES: 2 pipeline stages of 2 ranges each for 2 layers
module attributes {nn.batch = 1 : i64, nn.seq = 4 : i64, nn.cached = 0 : i64, nn.mode = "train", nn.model = "tiny"} {
func.func @layer(%layer: index, %x: tensor<1x4x8xf32>) -> tensor<1x4x8xf32> {
  %kx = nn.save "input"[%layer] %x : tensor<1x4x8xf32>
  %wu = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<4x8xf32>
  %u = nn.linear %x, %wu : (tensor<1x4x8xf32>, tensor<4x8xf32>) -> tensor<1x4x4xf32>
  %ku = nn.save "up"[%layer] %u : tensor<1x4x4xf32>
  %wd = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<8x4xf32>
  %m = nn.linear %u, %wd : (tensor<1x4x4xf32>, tensor<8x4xf32>) -> tensor<1x4x8xf32>
  %s = nn.scores %x, %x heads = 1 kv_heads = 1 : (tensor<1x4x8xf32>, tensor<1x4x8xf32>) -> tensor<1x1x4x4xf32>
  %y = nn.add %x, %m : tensor<1x4x8xf32>
  return %y : tensor<1x4x8xf32>
}
func.func @layer_backward(%layer: index, %dy: tensor<1x4x8xf32>) -> tensor<1x4x8xf32> {
  %wd = nn.param "layers.*.mlp.down.weight"[%layer] : tensor<8x4xf32>
  %du = nn.linear_dx %dy, %wd : (tensor<1x4x8xf32>, tensor<8x4xf32>) -> tensor<1x4x4xf32>
  %u = nn.saved "up"[%layer] : tensor<1x4x4xf32>
  %dwd = nn.linear_dw %dy, %u : (tensor<1x4x8xf32>, tensor<1x4x4xf32>) -> tensor<8x4xf32>
  %gd = nn.gradient "layers.*.mlp.down.weight"[%layer] %dwd : tensor<8x4xf32>
  %wu = nn.param "layers.*.mlp.up.weight"[%layer] : tensor<4x8xf32>
  %dx = nn.linear_dx %du, %wu : (tensor<1x4x4xf32>, tensor<4x8xf32>) -> tensor<1x4x8xf32>
  %x = nn.saved "input"[%layer] : tensor<1x4x8xf32>
  %dwu = nn.linear_dw %du, %x : (tensor<1x4x4xf32>, tensor<1x4x8xf32>) -> tensor<4x8xf32>
  %gu = nn.gradient "layers.*.mlp.up.weight"[%layer] %dwu : tensor<4x8xf32>
  %sum = nn.add %dy, %dx : tensor<1x4x8xf32>
  return %sum : tensor<1x4x8xf32>
}
func.func @main(%ids: tensor<1x4xi32>, %labels: tensor<1x4xi32>) -> tensor<1xf32> {
  %table = nn.param "embed.weight" : tensor<5x8xf32>
  %e = nn.embed %ids, %table : (tensor<1x4xi32>, tensor<5x8xf32>) -> tensor<1x4x8xf32>
  %x = nn.repeat @layer times = 2 (%e) : (tensor<1x4x8xf32>) -> tensor<1x4x8xf32>
  %head = nn.param "head.weight" : tensor<5x8xf32>
  %logits = nn.linear %x, %head : (tensor<1x4x8xf32>, tensor<5x8xf32>) -> tensor<1x4x5xf32>
  %loss = nn.cross_entropy %logits, %labels : (tensor<1x4x5xf32>, tensor<1x4xi32>) -> tensor<1xf32>
  %dl = nn.cross_entropy_dx %logits, %labels : (tensor<1x4x5xf32>, tensor<1x4xi32>) -> tensor<1x4x5xf32>
  %dx = nn.linear_dx %dl, %head : (tensor<1x4x5xf32>, tensor<5x8xf32>) -> tensor<1x4x8xf32>
  %dh = nn.linear_dw %dl, %x : (tensor<1x4x5xf32>, tensor<1x4x8xf32>) -> tensor<5x8xf32>
  %gh = nn.gradient "head.weight" %dh : tensor<5x8xf32>
  %de = nn.repeat @layer_backward times = 2 reverse (%dx) : (tensor<1x4x8xf32>) -> tensor<1x4x8xf32>
  %dt = nn.embed_dw %ids, %de rows = 5 : (tensor<1x4xi32>, tensor<1x4x8xf32>) -> tensor<5x8xf32>
  %gt = nn.gradient "embed.weight" %dt : tensor<5x8xf32>
  return %loss : tensor<1xf32>
}
}

#!/usr/bin/env bash
# Level event beside BookSim2, on one machine in one run: `compare.sh BOOKSIM [ROUNDS]`, where BOOKSIM is a checkout of
# github.com/booksim/booksim2 (commit 28f43299) outside of the repository; it is built with its own Makefile (g++, bison, flex).
# Both move one-word packets over a mesh to the neighbour at (x + 1, y + 1), which wraps round; one thread each, taking turns.
# Times are of the processor and of the whole process, ours with its checker. Instructions are counted by valgrind's callgrind.
# Prints every run, then per mesh the ratio of the medians; instructions a hop; how a reduce and broadcast grows to the whole
# wafer, on one thread and on two, which have to take the same cycles; and what a PE without work costs.
set -euo pipefail
booksim=$(cd "$1" && pwd)/src
rounds=${2:-3}
cd "$(dirname "$0")/../.."
[ -x "$booksim/booksim" ] || make -s -C "$booksim"
cargo build --release --locked -q --workspace --example fabric
ours=target/release/examples/fabric
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# user seconds and KiB of a command; its output goes to $work/out. BookSim2 ends with 255 when all went well.
measured() { /usr/bin/time -q -o "$work/time" -f "%U %M" "$@" >"$work/out" || [ "$1" != "$ours" ]; cat "$work/time"; }
# instructions of a command
instructions() { { valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" 2>&1 >/dev/null || true; } | sed -n "s/.*Collected : //p"; }

config() {
  cat >"$work/mesh" <<END
topology = mesh; k = $1; n = 2; routing_function = dor; num_vcs = 2; vc_buf_size = 4; packet_size = 1; use_read_write = 0;
traffic = neighbor; injection_rate = 0.5; sim_type = latency; sample_period = $2; warmup_periods = 3; seed = 7;
END
}
# flit-hops of a run: cycles x nodes x accepted rate x hops, as it prints them
flits() {
  awk -v nodes="$1" '/Time taken is/ { cycles = $4 } /Accepted flit rate average/ { rate = $6 } /Hops average/ { hops = $4 }
    END { printf "%d\n", cycles * nodes * rate * hops }' "$work/out"
}
words() { sed -n 's/.*cycles, \([0-9]*\) word-hops.*/\1/p' "$work/out"; }
rate() { awk -v hops="$1" -v s="$2" 'BEGIN { printf "%.3g", hops / s }'; }

echo "tool k hops user_s KiB hops_per_s"
for k in 8 16 32; do
  for round in $(seq "$rounds"); do
    config $k 1000
    read -r seconds kib < <(measured "$booksim/booksim" "$work/mesh")
    hops=$(flits $((k * k)))
    echo "booksim2 $k $hops $seconds $kib $(rate "$hops" "$seconds")"
    read -r seconds kib < <(measured $ours neighbour $k $((40000 / k)) 1)
    hops=$(words)
    echo "lapidary $k $hops $seconds $kib $(rate "$hops" "$seconds")"
  done
done | tee "$work/runs"
median() { awk -v tool="$1" -v k="$2" '$1 == tool && $2 == k { print $6 }' "$work/runs" | sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
echo "k ratio of word-hops to flit-hops a processor second"
for k in 8 16 32; do
  awk -v k=$k -v ours="$(median lapidary $k)" -v theirs="$(median booksim2 $k)" 'BEGIN { printf "%d %.0f\n", k, ours / theirs }'
done
echo "tool k hops instructions per_hop"
for k in 8; do
  config $k 200
  measured "$booksim/booksim" "$work/mesh" >/dev/null
  hops=$(flits $((k * k)))
  n=$(instructions "$booksim/booksim" "$work/mesh")
  echo "booksim2 $k $hops $n $((n / hops))"
  for times in 20 200; do
    $ours neighbour $k $times 1 >"$work/out"
    hops=$(words)
    n=$(instructions $ours neighbour $k $times 1)
    echo "lapidary $k $hops $n $((n / hops))"
  done
done
echo "PEs cycles hops threads (clock) user_s KiB"
for size in "32 32" "64 64" "128 128" "256 256" "512 512" "750 994"; do
  for threads in 1 2; do
    read -r seconds kib < <(measured $ours all-reduce $size 16 $threads)
    sed "s/\([0-9]*\) PEs, \([0-9]*\) cycles, \([0-9]*\) word-hops, \(.*\)/\1 \2 \3 $threads (\4) $seconds $kib/" "$work/out"
    sed -n 's/.* PEs, \([0-9]*\) cycles.*/\1/p' "$work/out" >"$work/cycles$threads"
  done
  cmp -s "$work/cycles1" "$work/cycles2" || { echo "two threads take other cycles on $size" >&2; exit 1; }
done
measured $ours idle 64 2 1 >"$work/few"
measured $ours idle 750 994 1 >"$work/many"
cat "$work/few" "$work/many" | awk '{ kib[NR] = $2; s[NR] = $1 }
  END { printf "bytes for each idle PE: %.0f; 745,500 PEs, all but a row idle: %s s, %d KiB\n", (kib[2] - kib[1]) * 1024 / (750 * 994 - 128), s[2], kib[2] }'

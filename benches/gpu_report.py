"""Sets a run of benches/gpu.sh out as a table, with torch's times beside ours where there are any; writes bench.json, tunings.json
and roofline.svg."""
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
run = json.loads((out / "gpu-run.json").read_text())
bench = run["bench"]
(out / "bench.json").write_text(json.dumps(bench, indent=1))
(out / "tunings.json").write_text(json.dumps(run["tunings"], indent=1))
if run.get("roofline"):
    (out / "roofline.svg").write_text(run["roofline"])


def key(one):
    return one["kernel"], one["dtype"], one.get("ops") or "", json.dumps(one["shape"], sort_keys=True)


torch, torch_skipped = {}, []
if (out / "torch.json").is_file() and (out / "torch.json").stat().st_size:
    document = json.loads((out / "torch.json").read_text())
    torch = {key(one): one["median_s"] for one in document["results"]}
    torch_skipped = document["skipped"]

ceilings = bench["ceilings"]
print(f"{bench['device']} ({run['arch']}, driver {run['driver']}), {bench['date']}")
print(f"copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, large product {ceilings['product_flops_per_s'] / 1e12:.0f} TFLOP/s")
wrong = [check for check in run["checks"] if not check["ok"]]
print(f"checks: {len(run['checks']) - len(wrong)} of {len(run['checks'])} agree with the reference")
for check in wrong:
    print(f"  DIFFERS: {check['name']}: {check['difference']}, {check['tolerance']} allowed")
print(f"{'kernel':20} {'shape':52} {'form':16} {'median ms':>10} {'+- %':>6} {'rate':>16} {'share %':>8} {'x torch':>8}")
for one in bench["results"]:
    shape = ", ".join(f"{name} {size}" for name, size in one["shape"].items())
    flops = one["unit"] == "FLOP/s"
    rate = f"{one['achieved'] / (1e12 if flops else 1e9):.1f} {'TFLOP/s' if flops else 'GB/s'}"
    other = torch.get(key(one))
    ratio = f"{other / one['median_s']:.2f}" if other else "-"
    name = one["kernel"] if one["dtype"] == "bf16" else f"{one['kernel']} {one['dtype']}"
    print(f"{name:20} {shape:52} {one.get('form') or '-':16} {one['median_s'] * 1e3:10.3f} {one['spread_pct']:6.1f} {rate:>16} "
          f"{one.get('share_pct') or 0:8.1f} {ratio:>8}")
    if one.get("tokens_per_s"):
        print(f"{'':20} {one['tokens_per_s']:.1f} tokens/s")
for one in bench.get("skipped", []):
    print(f"skipped {one['kernel']}: {one['why']}")
for one in torch_skipped:
    print(f"torch skipped {one['kernel']}: {one['why']}")

"""Sets a run of benches/gpu.sh out as a table, with torch's times beside ours where there are any; writes bench.json."""
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
run = json.loads((out / "gpu-run.json").read_text())
bench = run["bench"]
(out / "bench.json").write_text(json.dumps(bench, indent=1))
torch = {}
if (out / "torch.json").is_file() and (out / "torch.json").stat().st_size:
    for one in json.loads((out / "torch.json").read_text())["results"]:
        torch[one["kernel"], json.dumps(one["shape"], sort_keys=True)] = one["median_s"]

ceilings = bench["ceilings"]
print(f"{bench['device']} ({run['arch']}, driver {run['driver']}), {bench['date']}")
print(f"copy {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, large product {ceilings['product_flops_per_s'] / 1e12:.0f} TFLOP/s")
wrong = [check for check in run["checks"] if not check["ok"]]
print(f"checks: {len(run['checks']) - len(wrong)} of {len(run['checks'])} agree with the reference")
for check in wrong:
    print(f"  DIFFERS: {check['name']}: {check['difference']}, {check['tolerance']} allowed")
print(f"{'kernel':20} {'shape':52} {'median ms':>10} {'+- %':>6} {'rate':>16} {'share %':>8} {'x torch':>8}")
for one in bench["results"]:
    shape = ", ".join(f"{name} {size}" for name, size in one["shape"].items())
    flops = one["unit"] == "FLOP/s"
    rate = f"{one['achieved'] / (1e12 if flops else 1e9):.1f} {'TFLOP/s' if flops else 'GB/s'}"
    other = torch.get((one["kernel"], json.dumps(one["shape"], sort_keys=True)))
    ratio = f"{other / one['median_s']:.2f}" if other else "-"
    print(f"{one['kernel']:20} {shape:52} {one['median_s'] * 1e3:10.3f} {one['spread_pct']:6.1f} {rate:>16} "
          f"{one.get('share_pct', 0):8.1f} {ratio:>8}")
for one in bench.get("skipped", []):
    print(f"skipped {one['kernel']}: {one['why']}")

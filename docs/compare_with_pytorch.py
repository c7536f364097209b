#!/usr/bin/env python3
"""Times burn-var beside the original code in PyTorch, on the CPU or on an NVIDIA GPU: one table in Markdown.

    git clone https://github.com/FoundationVision/VAR
    git clone https://github.com/jiaosiyu1999/FlexVAR
    git clone https://github.com/FoundationVision/LlamaGen
    pip install torch torchvision timm scipy huggingface_hub    # in an environment of its own
    cargo build --release --workspace
    python docs/compare_with_pytorch.py --burn-var target/release/burn-var

The clones are looked for in the working folder, or where `--var`, `--flexvar` and `--llamagen` say. `--only FlexVA` or
`--only LlamaGen` measures one family, and needs no torchvision, timm or scipy.

Each measurement runs in processes of their own, so that nothing else is in its memory, and `--rounds` times in turn,
ours and then PyTorch's, so that both see the machine in the same state: the speed of a shared one changes from minute to
minute. One run to warm up, then `--runs`; the medians of all are shown, and the share of each round. Weights are random:
which ones makes no difference to the time. PyTorch gets the same settings of the C library's allocator as burn-var gives
itself (without them it is slower), as many threads, and plain float32 like burn-var.

On a GPU, `--device cuda --precision bf16` measures other work: published sizes, in batches that fill a GPU. `exact` and
`tf32` are PyTorch's switch for products, `bf16` and `f16` its autocast. `--compile` compiles the blocks of the original by
`torch.compile`. Memory is then that of the GPU, as the driver reports it for the process. `docs/gpu/measure.sh` runs all of it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time

LADDER = (1, 2, 3, 4, 6, 8)  # of the model that ships
PUBLISHED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of 256 pixels
SAMPLING = ["--cfg", "1.5", "--top-k", "900", "--top-p", "0.96"]
D16 = ["--preset", "d16"]
FLEXVAR = ["--preset", "flexvar-d16"]
GPT_B = ["--preset", "gpt-b"]

# Name: what burn-var is asked for, pictures in a run.
WORK = {
    "sample d16, batch 1": ([*D16, "--only", "sample", "--batch", "1", *SAMPLING], 1),
    "sample d16, batch 8": ([*D16, "--only", "sample", "--batch", "8", *SAMPLING], 8),
    "decode 256x256": ([*D16, "--only", "decode", "--batch", "1"], 1),
    "encode 256x256": ([*D16, "--only", "encode", "--batch", "1"], 1),
    "sample shipped, batch 32": (["--only", "sample", "--batch", "32"], 32),
    "train shipped transformer, batch 32": (["--only", "train-var", "--train-batch", "32"], 32),
    "train d16, batch 2": ([*D16, "--only", "train-var", "--train-batch", "2"], 2),
    "train shipped tokenizer, batch 32": (["--only", "train-tokenizer", "--train-batch", "32"], 32),
    "sample FlexVAR-d16, batch 1": ([*FLEXVAR, "--only", "sample", "--batch", "1", *SAMPLING], 1),
    "decode FlexVAE 256x256": ([*FLEXVAR, "--only", "decode", "--batch", "1"], 1),
    "encode FlexVAE 256x256": ([*FLEXVAR, "--only", "encode", "--batch", "1"], 1),
    "train FlexVAR-d16, batch 2": ([*FLEXVAR, "--only", "train-var", "--train-batch", "2"], 2),
    "sample LlamaGen GPT-B, batch 1": ([*GPT_B, "--only", "sample", "--batch", "1", *SAMPLING], 1),
    "train LlamaGen GPT-B, batch 2": ([*GPT_B, "--only", "train-var", "--train-batch", "2"], 2),
    "DINO ViT-S/16, batch 8": (["--only", "dino", "--batch", "8"], 8),
    "DINO ViT-S/16 with gradients, batch 8": (["--only", "dino-backward", "--batch", "8"], 8),
    "Inception, batch 50": (["--only", "inception", "--batch", "50"], 50),
    "Frechet distance, 2,048 features": (["--only", "frechet"], 1),
    "precision and recall, 10,000 x 10,000": (["--only", "coverage"], 1),
    "matrix product, 2048": (["--only", "matmul"], 1),
}


ON_GPU = {
    **{
        f"sample {model}, batch {batch}": (["--preset", model, "--only", "sample", "--batch", str(batch), *SAMPLING], batch)
        for model in ("d16", "d20", "d24", "d30")
        for batch in (1, 8, 64)
    },
    **{
        f"{work} 256x256, batch {batch}": ([*D16, "--only", work, "--batch", str(batch)], batch)
        for work in ("decode", "encode")
        for batch in (1, 64)
    },
    **{
        f"train {model}, batch {batch}": (["--preset", model, "--only", "train-var", "--train-batch", str(batch)], batch)
        for model, batch in (("d16", 16), ("d16", 64), ("d24", 16))
    },
    **{name: work for name, work in WORK.items() if "shipped" in name},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", default="VAR", help="a clone of the original VAR")
    parser.add_argument("--flexvar", default="FlexVAR", help="a clone of the original FlexVAR")
    parser.add_argument("--llamagen", default="LlamaGen", help="a clone of the original LlamaGen")
    parser.add_argument("--burn-var", help="the burn-var command")
    parser.add_argument("--runs", type=int, default=5, help="of each process")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="part of the names of what to measure")
    parser.add_argument("--device", choices=("cpu", "cuda", "vulkan", "wgpu"), default="cpu", help="of burn-var")
    parser.add_argument("--precision", choices=("exact", "tf32", "bf16", "f16"), default="exact", help="on a GPU")
    parser.add_argument("--compile", action="store_true", help="also measure the original compiled, on a GPU")
    parser.add_argument("--without-pytorch", action="store_true", help="measure burn-var alone")
    parser.add_argument("--pytorch", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = WORK if args.device == "cpu" else ON_GPU
    if args.pytorch:
        print(json.dumps(pytorch(args)))
        return
    environment = dict(
        os.environ,
        RAYON_NUM_THREADS=str(args.threads),
        MALLOC_MMAP_THRESHOLD_="4000000000",
        MALLOC_TRIM_THRESHOLD_="8000000000",
        MALLOC_TOP_PAD_="67108864",
    )
    print("| work | burn-var | PyTorch | share | of each round | memory | PyTorch's |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in work:
        if args.only and args.only not in name:
            continue
        for compiled in (False, True) if args.compile else (False,):
            compare(args, environment, name, work[name], compiled)


def compare(args, environment, name, work, compiled):
    """Prints a row of the table."""
    sides = [lambda: ours(args, environment, work), lambda: theirs(args, environment, name, compiled)]
    sides = sides[:1] if args.without_pytorch else sides
    name += ", compiled" if compiled else ""
    try:
        rounds = [[side() for side in sides] for _ in range(args.rounds)]
    except subprocess.CalledProcessError as failed:
        print(f"| {name} | failed with {failed.returncode}: `{' '.join(failed.cmd)}` | | | | | |", flush=True)
        return
    median = [statistics.median(seconds for of in rounds for seconds in of[side]["runs"]) for side in range(len(sides))]
    memory = [f"{max(of[side]['memory'] for of in rounds) / 1e9:.2f} GB" for side in range(len(sides))]
    if args.without_pytorch:
        print(f"| {name} | {median[0]:.3f} s | | | | {memory[0]} | |", flush=True)
        return
    shares = [statistics.median(a["runs"]) / statistics.median(b["runs"]) for a, b in rounds]
    print(
        f"| {name} | {median[0]:.3f} s | {median[1]:.3f} s | {median[0] / median[1]:.2f} "
        f"| {', '.join(f'{share:.2f}' for share in shares)} | {memory[0]} | {memory[1]} |",
        flush=True,
    )


def ours(args, environment, work):
    """The seconds of each run, and the most memory, of burn-var."""
    flags, pictures = work
    command = [args.burn_var, "--quiet", "--json", "bench", "--runs", str(args.runs), *flags]
    if args.device != "cpu":
        command += ["--device", args.device, "--precision", args.precision]
    output, memory = measured(command, environment)
    report = json.loads(output)
    result = report["results"][0]
    if result["unit"] == "GFLOP/s":
        runs = [2e-9 * 2048**3 / value for value in result["runs"]]
    elif result["unit"] in ("s", "s/step"):
        runs = result["runs"]
    else:
        runs = [pictures / value for value in result["runs"]]
    return {"runs": runs, "memory": report["peak_memory"] if args.device == "cpu" else memory}


def theirs(args, environment, name, compiled):
    """The same of PyTorch, in a process of its own."""
    command = [sys.executable, __file__, "--var", args.var, "--flexvar", args.flexvar]
    command += ["--llamagen", args.llamagen, "--runs", str(args.runs)]
    command += ["--threads", str(args.threads), "--device", args.device, "--precision", args.precision]
    command += ["--pytorch", name, *(["--compile"] if compiled else [])]
    output, memory = measured(command, environment)
    result = json.loads(output.splitlines()[-1])  # the original prints too
    return result if args.device == "cpu" else {**result, "memory": memory}


def measured(command, environment):
    """What a process prints, and the most memory of a GPU that NVIDIA's driver reports for it: 0 where there is none."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch():
        nonlocal peak
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        while process.poll() is None:
            try:
                lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
            except (OSError, subprocess.CalledProcessError):
                return
            # In a container the numbers of processes are those of the host: with no other work, all lines are ours.
            peak = max(peak, sum(int(line.split(",")[1]) for line in lines if line.split(",")[1].strip().isdigit()))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output, peak * 2**20


def pytorch(args):
    """The seconds of each run, and the most memory, of the original."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # Two of them have a package `models`.
    clones = [clone for name, clone in (("FlexVA", args.flexvar), ("LlamaGen", args.llamagen)) if name in args.pytorch]
    sys.path.insert(0, clones[0] if clones else args.var)
    # A single process; the original asks for the number of them even when it trains alone.
    torch.distributed.get_world_size = lambda *_: 1
    exact, half = args.precision == "exact", {"bf16": torch.bfloat16, "f16": torch.float16}.get(args.precision)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    args.device = "cpu" if args.device == "cpu" else "cuda"
    torch.set_default_device(args.device)
    work = prepare(torch, args.pytorch, args)
    warm = 1 if args.device == "cpu" else 5
    times = []
    for _ in range(args.runs + warm):
        start = time.perf_counter()
        with torch.autocast(args.device, dtype=half, enabled=half is not None):
            work()
        if args.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"runs": times[warm:], "memory": peak}


def prepare(torch, name, args):
    inference = torch.inference_mode()
    if name.startswith("matrix"):
        a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        return inference(lambda: a @ b)
    if name.startswith("DINO"):
        import timm

        vit = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0).eval().requires_grad_(False)
        images = torch.randn(8, 3, 224, 224)
        if "gradients" not in name:
            return inference(lambda: vit(images))
        return lambda: vit(images.clone().requires_grad_(True)).sum().backward()
    if name.startswith("Inception"):
        import torchvision

        network = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False)
        network.fc = torch.nn.Identity()
        network.eval()
        images = torch.rand(50, 3, 299, 299) * 2 - 1
        return inference(lambda: network(images))
    if name.startswith("Frechet"):
        return frechet_distance()
    if name.startswith("precision"):
        return precision_and_recall()
    if "FlexVA" in name:
        return flexvar(torch, name)
    if "LlamaGen" in name:
        return llamagen(torch, name)
    if name.startswith("train shipped tokenizer"):
        return train_tokenizer(torch)
    if name.startswith("train"):
        return train_transformer(torch, name, args)

    from models import build_vae_var

    if "shipped" in name:
        vae, var = shipped()
    else:
        vae, var = build_vae_var(args.device, depth=depth(name), flash_if_available=True, fused_if_available=True)
    vae.eval(), var.eval()
    compiled(torch, var, args)
    # The original leaves weights that a checkpoint is to fill as they are, which may be no numbers at all.
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    batch = size_of_batch(name)
    if name.startswith("sample"):
        labels = torch.arange(batch) % var.num_classes
        sample = lambda: var.autoregressive_infer_cfg(B=batch, label_B=labels, g_seed=0, cfg=1.5, top_k=900, top_p=0.96)
        return inference(sample)
    if name.startswith("decode"):
        latent = torch.randn(batch, 32, 16, 16)
        return inference(lambda: vae.fhat_to_img(latent.clone()))
    images = torch.rand(batch, 3, 256, 256) * 2 - 1
    return inference(lambda: vae.img_to_idxBl(images))


def size_of_batch(name):
    return int(name.split("batch ")[1]) if "batch " in name else 1


def depth(name):
    """The blocks of a published size that the name of a work begins with: `train d24, batch 16`."""
    word = name.split()[1].rstrip(",")
    return int(word[1:]) if word[0] == "d" and word[1:].isdigit() else 16


def compiled(torch, var, args):
    """Compiles the blocks: the whole loop would be compiled anew at every scale, which a block is, too, but sooner."""
    if args.compile:
        torch._dynamo.config.cache_size_limit = 64
        for block in var.blocks:
            block.compile(dynamic=False)


def flexvar(torch, name):
    from models import FlexVAR, VQ_models

    vae = VQ_models["VQ-16"](codebook_size=8912, codebook_embed_dim=32).eval().requires_grad_(False)
    inference = torch.inference_mode()
    if name.startswith("decode"):
        codes = torch.randn(1, 32, 16, 16)
        return inference(lambda: vae.decode(codes))
    if name.startswith("encode"):
        images = torch.rand(1, 3, 256, 256) * 2 - 1
        area = lambda latent, side: torch.nn.functional.interpolate(latent, size=(side, side), mode="area")

        def encode():
            latent = vae.encode_conti(images)
            return [vae.quantize(area(latent, side)) for side in PUBLISHED]

        return inference(encode)

    model = FlexVAR(
        vae_local=vae, num_classes=1000, depth=16, embed_dim=1024, num_heads=16, drop_path_rate=0.0, attn_l2_norm=True,
        patch_nums=PUBLISHED, flash_if_available=True, fused_if_available=True,
    )  # fmt: skip
    model.init_weights(init_adaln=0.5, init_adaln_gamma=1e-3, init_head=0.02, init_std=-1)
    if name.startswith("sample"):
        model.eval()
        request = dict(B=1, label_B=torch.arange(1), infer_patch_nums=PUBLISHED, g_seed=0)
        request |= dict(cfg=1.5, top_k=900, top_p=0.96)
        return inference(lambda: model.autoregressive_infer_cfg(vae, **request))
    model.train()
    batch, codes = 2, 8912
    labels = torch.randint(0, 1000, (batch,))
    tokens = torch.randint(0, codes, (batch, model.L))
    inputs = torch.randn(batch, model.L - 1, 32)
    entropy = torch.nn.CrossEntropyLoss()
    loss = lambda: entropy(model(labels, inputs, PUBLISHED).view(-1, codes), tokens.view(-1))
    return trained(torch, model.parameters(), loss, clip=2.0)


def llamagen(torch, name):
    from autoregressive.models.gpt import GPT_models

    codes, side, batch = 16384, 16, size_of_batch(name)
    model = GPT_models["GPT-B"](vocab_size=codes, block_size=side**2, num_classes=1000, cls_token_num=1)
    labels = torch.randint(0, 1000, (batch,))
    if name.startswith("train"):
        model.train()
        tokens = torch.randint(0, codes, (batch, side**2))
        return trained(torch, model.parameters(), lambda: model(tokens[:, :-1], labels, targets=tokens)[1], clip=1.0)
    from autoregressive.models.generate import generate
    from tokenizer.tokenizer_image.vq_model import VQ_models

    model.eval()
    vq = VQ_models["VQ-16"](codebook_size=codes, codebook_embed_dim=8).eval()

    def sample():
        # A scale of 2.5 is burn-var's 1.5.
        tokens = generate(model, labels, side**2, cfg_scale=2.5, temperature=1.0, top_k=900, top_p=0.96)
        return vq.decode_code(tokens, [batch, 8, side, side])

    return torch.inference_mode()(sample)


def frechet_distance():
    """As pytorch-fid does it: scipy's square root of the product of the covariances."""
    import numpy
    import scipy.linalg

    random = numpy.random.default_rng(0)
    a, b = (random.standard_normal((4096, 2048)) for _ in range(2))
    (mean_a, a), (mean_b, b) = ((x.mean(0), numpy.cov(x, rowvar=False)) for x in (a, b))

    def distance():
        root = scipy.linalg.sqrtm(a @ b).real
        return ((mean_a - mean_b) ** 2).sum() + numpy.trace(a) + numpy.trace(b) - 2 * numpy.trace(root)

    return distance


def precision_and_recall(count=10_000, features=2048, neighbours=3):
    """As the guided-diffusion evaluator does it, in single precision and with all distances at once."""
    import numpy

    random = numpy.random.default_rng(0)
    real, made = (random.standard_normal((count, features), dtype=numpy.float32) for _ in range(2))

    def distances(a, b):
        squares = [numpy.square(x).sum(1) for x in (a, b)]
        return squares[0][:, None] - 2 * a @ b.T + squares[1]

    def radii(rows):
        return numpy.partition(distances(rows, rows), neighbours, axis=1)[:, neighbours]

    def shares():
        between = distances(real, made)
        precision = (between <= radii(real)[:, None]).any(0).mean()
        return precision, (between <= radii(made)).any(1).mean()

    return shares


def trained(torch, parameters, loss, clip):
    """One step: gradients, clipping, AdamW, moving average, as burn-var's trainers do."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 0.001)

    return step


def shipped():
    """The model that ships: the classes of the original have no names for its sizes."""
    from models import vqvae
    from models.var import VAR

    vae = vqvae.VQVAE(vocab_size=1024, z_channels=16, ch=32, test_mode=False, share_quant_resi=4, v_patch_nums=LADDER)
    sizes = dict(ch=32, z_channels=16, in_channels=1, ch_mult=(1, 1, 2), num_res_blocks=1, dropout=0.0)
    sizes |= dict(using_sa=True, using_mid_sa=True)
    vae.encoder, vae.decoder = vqvae.Encoder(double_z=False, **sizes), vqvae.Decoder(**sizes)
    var = VAR(
        vae_local=vae, num_classes=10, depth=6, embed_dim=192, num_heads=3, drop_rate=0.0, attn_drop_rate=0.0,
        drop_path_rate=0.0, norm_eps=1e-6, shared_aln=True, cond_drop_rate=0.1, attn_l2_norm=True,
        patch_nums=LADDER, flash_if_available=True, fused_if_available=True,
    )  # fmt: skip
    return vae, var


def train_transformer(torch, name, args):
    from models import build_vae_var

    if "shipped" in name:
        vae, var = shipped()
    else:
        vae, var = build_vae_var(args.device, depth=depth(name), flash_if_available=True, fused_if_available=True)
    compiled(torch, var, args)
    var.train()
    batch, codes, channels = size_of_batch(name), vae.vocab_size, vae.Cvae
    labels = torch.randint(0, var.num_classes, (batch,))
    tokens = torch.randint(0, codes, (batch, var.L))
    inputs = torch.randn(batch, var.L - 1, channels)
    entropy = torch.nn.CrossEntropyLoss()
    loss = lambda: entropy(var(labels, inputs).view(-1, codes), tokens.view(-1))
    return trained(torch, var.parameters(), loss, clip=2.0)


def train_tokenizer(torch):
    vae, _ = shipped()
    vae.train()
    for parameter in vae.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    images = torch.rand(32, 1, 32, 32) * 2 - 1

    def loss():
        made, _, quantisation = vae(images)
        return torch.nn.functional.mse_loss(made, images) + quantisation

    return trained(torch, vae.parameters(), loss, clip=1.0)


if __name__ == "__main__":
    main()

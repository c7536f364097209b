#!/usr/bin/env python3
"""Times burn-var beside the original code in PyTorch, on the CPU: one table in Markdown.

    git clone https://github.com/FoundationVision/VAR
    git clone https://github.com/jiaosiyu1999/FlexVAR
    pip install torch torchvision timm scipy huggingface_hub    # in an environment of its own
    cargo build --release --workspace
    python docs/compare_with_pytorch.py --var VAR --flexvar FlexVAR --burn-var target/release/burn-var

`--only FlexVA` measures FlexVAR alone, and needs no torchvision, timm or scipy.

Each measurement runs in processes of their own, so that nothing else is in its memory, and `--rounds` times in turn,
ours and then PyTorch's, so that both see the machine in the same state: the speed of a shared one changes from minute to
minute. One run to warm up, then `--runs`; the medians of all are shown, and the share of each round. Weights are random:
which ones makes no difference to the time. PyTorch gets the same settings of the C library's allocator as burn-var gives
itself (without them it is slower), as many threads, and plain float32 like burn-var.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

LADDER = (1, 2, 3, 4, 6, 8)  # of the model that ships
PUBLISHED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of 256 pixels
SAMPLING = ["--cfg", "1.5", "--top-k", "900", "--top-p", "0.96"]
D16 = ["--preset", "d16"]
FLEXVAR = ["--preset", "flexvar-d16"]

# Name: what burn-var is asked for, pictures in a run.
WORK = {
    "sample d16, batch 1": ([*D16, "--only", "sample", "--batch", "1", *SAMPLING], 1),
    "sample d16, batch 8": ([*D16, "--only", "sample", "--batch", "8", *SAMPLING], 8),
    "decode 256x256": ([*D16, "--only", "decode", "--batch", "1"], 1),
    "encode 256x256": ([*D16, "--only", "encode", "--batch", "1"], 1),
    "train shipped transformer, batch 32": (["--only", "train-var", "--train-batch", "32"], 32),
    "train d16, batch 2": ([*D16, "--only", "train-var", "--train-batch", "2"], 2),
    "train shipped tokenizer, batch 32": (["--only", "train-tokenizer", "--train-batch", "32"], 32),
    "sample FlexVAR-d16, batch 1": ([*FLEXVAR, "--only", "sample", "--batch", "1", *SAMPLING], 1),
    "decode FlexVAE 256x256": ([*FLEXVAR, "--only", "decode", "--batch", "1"], 1),
    "encode FlexVAE 256x256": ([*FLEXVAR, "--only", "encode", "--batch", "1"], 1),
    "train FlexVAR-d16, batch 2": ([*FLEXVAR, "--only", "train-var", "--train-batch", "2"], 2),
    "DINO ViT-S/16, batch 8": (["--only", "dino", "--batch", "8"], 8),
    "DINO ViT-S/16 with gradients, batch 8": (["--only", "dino-backward", "--batch", "8"], 8),
    "Inception, batch 50": (["--only", "inception", "--batch", "50"], 50),
    "Frechet distance, 2,048 features": (["--only", "frechet"], 1),
    "precision and recall, 10,000 x 10,000": (["--only", "coverage"], 1),
    "matrix product, 2048": (["--only", "matmul"], 1),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", default="VAR", help="a clone of the original VAR")
    parser.add_argument("--flexvar", default="FlexVAR", help="a clone of the original FlexVAR")
    parser.add_argument("--burn-var", help="the burn-var command")
    parser.add_argument("--runs", type=int, default=5, help="of each process")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="part of the names of what to measure")
    parser.add_argument("--pytorch", help=argparse.SUPPRESS)
    args = parser.parse_args()
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
    for name in WORK:
        if args.only and args.only not in name:
            continue
        rounds = [(ours(args, environment, name), theirs(args, environment, name)) for _ in range(args.rounds)]
        median = [statistics.median(seconds for of in rounds for seconds in of[which]["runs"]) for which in (0, 1)]
        shares = [statistics.median(a["runs"]) / statistics.median(b["runs"]) for a, b in rounds]
        memory = [max(of[which]["memory"] for of in rounds) / 1e9 for which in (0, 1)]
        print(
            f"| {name} | {median[0]:.3f} s | {median[1]:.3f} s | {median[0] / median[1]:.2f} "
            f"| {', '.join(f'{share:.2f}' for share in shares)} | {memory[0]:.2f} GB | {memory[1]:.2f} GB |",
            flush=True,
        )


def ours(args, environment, name):
    """The seconds of each run, and the most memory, of burn-var."""
    flags, pictures = WORK[name]
    command = [args.burn_var, "--quiet", "--json", "bench", "--runs", str(args.runs), *flags]
    report = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
    measured = report["results"][0]
    if measured["unit"] == "GFLOP/s":
        runs = [2e-9 * 2048**3 / value for value in measured["runs"]]
    elif measured["unit"] in ("s", "s/step"):
        runs = measured["runs"]
    else:
        runs = [pictures / value for value in measured["runs"]]
    return {"runs": runs, "memory": report["peak_memory"]}


def theirs(args, environment, name):
    """The same of PyTorch, in a process of its own."""
    command = [sys.executable, __file__, "--var", args.var, "--flexvar", args.flexvar, "--runs", str(args.runs)]
    command += ["--threads", str(args.threads), "--pytorch", name]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output.splitlines()[-1])  # the original prints too


def pytorch(args):
    """The seconds of each run, and the most memory, of the original."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # Both have a package `models`.
    sys.path.insert(0, args.flexvar if "FlexVA" in args.pytorch else args.var)
    # A single process; the original asks for the number of them even when it trains alone.
    torch.distributed.get_world_size = lambda *_: 1
    work = prepare(torch, args.pytorch)
    times = []
    for _ in range(args.runs + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"runs": times[1:], "memory": peak}


def prepare(torch, name):
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
    if name.startswith("train shipped tokenizer"):
        return train_tokenizer(torch)
    if name.startswith("train"):
        return train_transformer(torch, shipped="shipped" in name)

    from models import build_vae_var

    vae, var = build_vae_var("cpu", depth=16, flash_if_available=True, fused_if_available=True)
    vae.eval(), var.eval()
    # The original leaves weights that a checkpoint is to fill as they are, which may be no numbers at all.
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if name.startswith("sample"):
        batch = int(name.split()[-1])
        labels = torch.arange(batch)
        sample = lambda: var.autoregressive_infer_cfg(B=batch, label_B=labels, g_seed=0, cfg=1.5, top_k=900, top_p=0.96)
        return inference(sample)
    if name.startswith("decode"):
        latent = torch.randn(1, 32, 16, 16)
        return inference(lambda: vae.fhat_to_img(latent.clone()))
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    return inference(lambda: vae.img_to_idxBl(images))


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


def train_transformer(torch, shipped):
    from models import build_vae_var
    from models.var import VAR
    from models.vqvae import VQVAE

    if shipped:
        batch, codes, channels, classes = 32, 1024, 16, 10
        vae = VQVAE(vocab_size=codes, z_channels=channels, ch=32, test_mode=True, share_quant_resi=4, v_patch_nums=LADDER)
        var = VAR(
            vae_local=vae, num_classes=classes, depth=6, embed_dim=192, num_heads=3, drop_rate=0.0, attn_drop_rate=0.0,
            drop_path_rate=0.0, norm_eps=1e-6, shared_aln=True, cond_drop_rate=0.1, attn_l2_norm=True,
            patch_nums=LADDER, flash_if_available=True, fused_if_available=True,
        )  # fmt: skip
    else:
        batch, codes, channels, classes = 2, 4096, 32, 1000
        _, var = build_vae_var("cpu", depth=16, flash_if_available=True, fused_if_available=True)
    var.train()
    labels = torch.randint(0, classes, (batch,))
    tokens = torch.randint(0, codes, (batch, var.L))
    inputs = torch.randn(batch, var.L - 1, channels)
    entropy = torch.nn.CrossEntropyLoss()
    loss = lambda: entropy(var(labels, inputs).view(-1, codes), tokens.view(-1))
    return trained(torch, var.parameters(), loss, clip=2.0)


def train_tokenizer(torch):
    from models import vqvae

    vae = vqvae.VQVAE(vocab_size=1024, z_channels=16, ch=32, test_mode=False, share_quant_resi=4, v_patch_nums=LADDER)
    sizes = dict(ch=32, z_channels=16, in_channels=1, ch_mult=(1, 1, 2), num_res_blocks=1, dropout=0.0)
    sizes |= dict(using_sa=True, using_mid_sa=True)
    vae.encoder, vae.decoder = vqvae.Encoder(double_z=False, **sizes), vqvae.Decoder(**sizes)
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

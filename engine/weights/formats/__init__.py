'''Formats of stored weights, one file each. A new file adds a format that checkpoints may have.

Files are found by their place, without a registration. A file may define three names (see
engine/weights/stored_format.py):

- `FORMAT`: how checkpoints of the format are recognized and read.
- `PACKINGS`: how its tensors are copied to the device in fewer bytes and expanded there. Without it
  they are expanded when they are read.
- `QUANTIZATION`: how weights are quantized while they are read (`quantize: <file's name>` in YAML).

This is a complete example. It reads checkpoints that store each linear weight `w` [out, in] as two
tensors, `w.codes` (int8, [out, in]) and `w.scale` (float32, [out]), and whose config.json has
`"quantization_config": {"quant_method": "int8_rows"}`. Weights stay packed until a layer runs, or
are expanded when they are read if the plan expects that to be faster:

    """Linear weights as int8 codes, with one scale for each row."""

    from functools import partial

    import torch

    from engine.errors import ModelError
    from engine.weights.outline import linear_weights
    from engine.weights.sources import Source
    from engine.weights.stored_format import Packing, StoredFormat

    CODES, SCALE = ".codes", ".scale"


    def fields(shape):
        """Return the packed fields of a weight of `shape`, by the suffix of their names."""
        return {CODES: (torch.int8, shape), SCALE: (torch.float32, shape[:-1])}


    def find(checkpoint, quantization):
        """Return the source of every weight, by the name of the dense weight."""
        found = {}
        for name, codes in checkpoint.tensors.items():
            if not name.endswith(CODES):
                continue
            weight = name.removesuffix(CODES)
            scale = checkpoint.tensors.get(weight + SCALE)
            if scale is None or scale.shape != codes.shape[:1]:
                raise ModelError(f"{codes.file}: {name} has no {weight}{SCALE} of its rows")
            found[weight] = Source(
                shape=codes.shape,
                parts=(codes, scale),
                fill=partial(fill, checkpoint, codes, scale),
                packed=fields(codes.shape),
            )
        return found


    def fill(checkpoint, codes, scale, *out):
        """Write a weight into its two packed fields, or into one dense tensor."""
        if len(out) == 2:
            checkpoint.read(codes, out[0])
            checkpoint.read(scale, out[1])
        else:
            expand(checkpoint.load(codes), checkpoint.load(scale), out[0])


    def expand(codes, scale, out):
        """Compute the dense weight, on the device of its fields."""
        torch.mul(codes, scale.unsqueeze(-1), out=out)


    def plan(model, quantization):
        """Return the packed fields of all linear weights and experts, from config.json alone."""
        state = model.state_dict()
        return {name: fields(tuple(state[name].shape)) for name in linear_weights(model)}


    FORMAT = StoredFormat(
        title="int8 rows",
        detect=lambda quantization: quantization["quant_method"] == "int8_rows",
        find=find,
        plan=plan,
    )
    PACKINGS = (
        Packing(
            title="int8 rows",
            suffixes=(CODES, SCALE),
            dense_shape=lambda codes: codes,
            expand=expand,
        ),
    )
'''

def commfix_watch_captured_layers(model: object) -> None:
    """Let each layer's communicator know where its model reads what the layer has put out.

    Concerns models that take hidden states for a draft between two layers, as ``hidden_states +
    residual``. Those that leave it to the following layer's ``prepare_attn`` read behind the
    all-reduce, wherever it is done, and stay as they are.

    Args:
        model: what the model runner has loaded, a ``torch.nn.Module``.

    """
    import inspect

    # By the class whose forward function reads. These two leave it to their layers from 0.5.14 and
    # 0.5.4.post2 on.
    until_layers_do = ("DeepseekV2Model", "Qwen2MoeModel")
    always = (
        "BailingMoELinearModel",
        "BailingMoEModel",
        "Glm4MoeLiteModel",
        "Glm4MoeModel",
        "Glm5NextModel",
        "GptOssModel",
        "LagunaModel",
        "Qwen3MoeLLMModel",
    )
    # It names the layers that give; all others name the layers that are given.
    names_the_giving = ("BailingMoELinearModel",)

    for part in model.modules():
        reader = type(part).forward.__qualname__.partition(".")[0]
        if reader not in (*always, *until_layers_do) or not hasattr(part, "layers_to_capture"):
            continue
        for number, layer in enumerate(part.layers):
            communicator = getattr(layer, "layer_communicator", None)
            if communicator is None:
                continue
            given = inspect.signature(layer.forward).parameters
            if reader in until_layers_do and "captured_last_layer_outputs" in given:
                continue
            name = number if reader in names_the_giving else number + 1
            communicator.commfix_reader = (part, name)


def commfix_output_is_captured(communicator: object) -> bool:
    """Tell whether what this communicator's layer puts out is read before the next layer has it.

    Asked anew in each pass: up to 0.5.10.post1 the layers to capture are set more than once.
    """
    part, name = getattr(communicator, "commfix_reader", (None, 0))
    return part is not None and name in (part.layers_to_capture or ())

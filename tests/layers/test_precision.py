import torch

from rankloom.layers.precision import in_product_dtype


def test_rounds_under_autocast_and_is_the_tensor_itself_outside() -> None:
    x = torch.tensor([1.0, 1.001])
    assert in_product_dtype(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        rounded = in_product_dtype(x)
        assert rounded.dtype == (x @ x.unsqueeze(1)).dtype == torch.bfloat16
    assert rounded.tolist() == [1.0, 1.0]  # 8 bits of mantissa
    with torch.autocast("cpu", enabled=False):
        assert in_product_dtype(x) is x

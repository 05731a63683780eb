"""Small hosts whose body is what a test is about."""

from torch import nn

SHAPE = (3, 8, 8)


class Host(nn.Module):
    """A stem, a body that `body` computes with the layers given by name, and a classifier."""

    def __init__(self, body, width=8, out=8, **layers):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.fc = nn.Linear(out, 5)
        self.body = body

    def forward(self, x):
        return self.fc(self.body(self, self.stem(x)).mean((2, 3)))


def conv(inputs=8, outputs=8, kernel=3, stride=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **{"bias": False, **options})

"""Training and testing of HyperIQA, with the three repairs of its training loop.

1. The backbone's learning rate decays too (`learning_rates`).
2. One Adam is made in the constructor and lives through the run; its learning rates are set in place (`set_learning_rates`).
3. `hypernet_params` is a list, so the hypernetwork's parameters are still there after the optimizer has read them once.
"""
import math
import sys
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from tqdm import tqdm

import models
from data_loader import DataLoader
from metrics import plcc, srcc

DEFAULTS = {
    'dataset': 'livec', 'train_patch_num': 25, 'test_patch_num': 25, 'lr': 2e-5, 'weight_decay': 5e-4, 'lr_ratio': 10,
    'batch_size': 96, 'epochs': 16, 'patch_size': 224, 'train_test_num': 10,
    'seed': 0, 'device': None, 'weights': 'imagenet', 'num_workers': 2, 'amp': False,
}


def learning_rates(epoch, lr, lr_ratio):
    """Learning rates that follow the finished 0-based `epoch`: (hypernetwork, backbone)."""
    backbone = lr / 10 ** (epoch // 6)
    return (backbone if epoch > 8 else backbone * lr_ratio), backbone


class HyperIQASolver:
    """One round: a network, its optimizer, and the training and test part of a database.

    Args:
        config: the script's options as attributes; what is absent has its value of `DEFAULTS`.
        path: the database's folder.
        train_idx, test_idx: positions of the units of each part (see `folders.split_units`).
        round_index: 0-based; the initial weights and the drawn patches depend on it and on `config.seed`.

    Attributes:
        model_hyper: the `models.HyperNet`.
        solver: the one Adam; `param_groups[0]` is the hypernetwork, `[1]` the backbone with the LDA heads.
        hypernet_params: list of the parameters outside the backbone.
    """

    def __init__(self, config, path, train_idx, test_idx, *, round_index=0):
        config = SimpleNamespace(**{**DEFAULTS, **vars(config)})
        self.epochs = config.epochs
        self.amp = config.amp
        self.device = torch.device(config.device or default_device())
        self.lr = config.lr
        self.lrratio = config.lr_ratio
        self.weight_decay = config.weight_decay

        def loader(idx, patch_num, istrain):
            return DataLoader(config.dataset, path, idx, config.patch_size, patch_num, config.batch_size, istrain,
                              seed=config.seed, round_index=round_index, device=self.device,
                              num_workers=config.num_workers).get_data()
        self.train_data = loader(train_idx, config.train_patch_num, True)
        self.test_data = loader(test_idx, config.test_patch_num, False)

        torch.manual_seed(1000 * config.seed + round_index)
        self.model_hyper = models.hyperiqa()
        models.load_weights(self.model_hyper, config.weights)
        self.model_hyper.to(self.device, memory_format=torch.channels_last)

        backbone_params = list(self.model_hyper.res.parameters())
        backbone_ids = set(map(id, backbone_params))
        self.hypernet_params = [p for p in self.model_hyper.parameters() if id(p) not in backbone_ids]
        self.solver = torch.optim.Adam([{'params': self.hypernet_params, 'lr': self.lr * self.lrratio},
                                        {'params': backbone_params, 'lr': self.lr}],
                                       weight_decay=self.weight_decay)

    def train(self):
        """Train all epochs, printing a table row for each.

        Returns:
            (float, float): SRCC and PLCC on the test part in the epoch with the highest test SRCC; nan without one.
        """
        best_srcc = best_plcc = math.nan
        print('Epoch  Train_Loss  Train_SRCC  Test_SRCC  Test_PLCC', flush=True)
        for epoch in range(self.epochs):
            train_loss, train_srcc = self.train_epoch(epoch)
            if not math.isfinite(train_loss):
                print(f'epoch {epoch + 1}: the training loss is {train_loss}, so this round stops here; '
                      f'a lower --lr may help', file=sys.stderr)
                break
            test_srcc, test_plcc = self.test(self.test_data)
            print(f'{epoch + 1:5d}  {train_loss:10.3f}  {train_srcc:10.4f}  {test_srcc:9.4f}  {test_plcc:9.4f}', flush=True)
            if is_better(test_srcc, best_srcc):
                best_srcc, best_plcc = test_srcc, test_plcc
            self.set_learning_rates(*learning_rates(epoch, self.lr, self.lrratio))
        print(f'Best test SRCC {best_srcc:.4f}, PLCC {best_plcc:.4f}', flush=True)
        return best_srcc, best_plcc

    def train_epoch(self, epoch):
        """Train the 0-based `epoch`: (mean absolute error, SRCC) over its patches, each as predicted when it was trained on."""
        self.model_hyper.train()
        self.train_data.set_epoch(epoch)
        predicted, subjective = [], []
        for patches, scores in self.progress(self.train_data, f'epoch {epoch + 1}'):
            output = self.forward(patches)
            self.solver.zero_grad()
            F.l1_loss(output, scores).backward()
            self.solver.step()
            predicted.append(output.detach())
            subjective.append(scores)
        predicted, subjective = torch.cat(predicted), torch.cat(subjective)
        loss = F.l1_loss(predicted, subjective).item()
        return loss, srcc(predicted.cpu(), subjective.cpu())

    def test(self, data):
        """(SRCC, PLCC) of the mean score of each image of `data`, a `PatchLoader` with `istrain` false."""
        predicted = self.predict(data)
        return srcc(predicted, data.scores), plcc(predicted, data.scores)

    def predict(self, data):
        """The mean score over its patches of each image of `data`: a float64 array (images,)."""
        self.model_hyper.eval()
        with torch.inference_mode():
            predicted = torch.cat([self.forward(patches) for patches, _ in self.progress(data, 'test')])
        return predicted.cpu().double().view(-1, data.patch_num).mean(1).numpy()

    def forward(self, patches):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return models.predict_scores(self.model_hyper, patches)

    def set_learning_rates(self, hypernet_lr, backbone_lr):
        self.solver.param_groups[0]['lr'] = hypernet_lr
        self.solver.param_groups[1]['lr'] = backbone_lr

    def progress(self, data, title):
        """`data` with a progress bar on stderr, if that is a terminal."""
        return tqdm(data, title, leave=False, unit_scale=data.batch_size, unit='patch', disable=None)


def default_device():
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def is_better(value, best):
    """Whether `value` is higher than `best`; nan is never better, and anything is better than nan."""
    return value > best or (math.isnan(best) and not math.isnan(value))

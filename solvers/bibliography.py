"""The papers behind the solvers, as BibTeX. ``Solver.paper`` is a key of ``PAPERS``."""

from __future__ import annotations

from .registry import find_solver

PAPERS: dict[str, str] = {
    "song2021ddim": """@inproceedings{song2021ddim,
  title     = {Denoising Diffusion Implicit Models},
  author    = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  eprint    = {2010.02502},
}""",
    "ho2020ddpm": """@inproceedings{ho2020ddpm,
  title     = {Denoising Diffusion Probabilistic Models},
  author    = {Ho, Jonathan and Jain, Ajay and Abbeel, Pieter},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020},
  eprint    = {2006.11239},
}""",
    "song2021score": """@inproceedings{song2021score,
  title     = {Score-Based Generative Modeling through Stochastic Differential Equations},
  author    = {Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek
               and Ermon, Stefano and Poole, Ben},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  eprint    = {2011.13456},
}""",
    "wang2025cps": """@misc{wang2025cps,
  title  = {Coefficients-Preserving Sampling for Reinforcement Learning with Flow Matching},
  author = {Wang, Feng and Yu, Zihao},
  year   = {2025},
  eprint = {2509.05952},
}""",
    "karras2022edm": """@inproceedings{karras2022edm,
  title     = {Elucidating the Design Space of Diffusion-Based Generative Models},
  author    = {Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  eprint    = {2206.00364},
}""",
    "lu2022dpm": """@inproceedings{lu2022dpm,
  title     = {{DPM-Solver}: A Fast {ODE} Solver for Diffusion Probabilistic Model Sampling in
               Around 10 Steps},
  author    = {Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and
               Zhu, Jun},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  eprint    = {2206.00927},
}""",
    "lu2022dpmpp": """@misc{lu2022dpmpp,
  title  = {{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models},
  author = {Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and
            Zhu, Jun},
  year   = {2022},
  eprint = {2211.01095},
}""",
    "zhao2023unipc": """@inproceedings{zhao2023unipc,
  title     = {{UniPC}: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
               Models},
  author    = {Zhao, Wenliang and Bai, Lujia and Rao, Yongming and Zhou, Jie and Lu, Jiwen},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2302.04867},
}""",
    "zhang2023deis": """@inproceedings{zhang2023deis,
  title     = {Fast Sampling of Diffusion Models with Exponential Integrator},
  author    = {Zhang, Qinsheng and Chen, Yongxin},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  eprint    = {2204.13902},
}""",
    "zheng2023dpmv3": """@inproceedings{zheng2023dpmv3,
  title     = {{DPM-Solver-v3}: Improved Diffusion {ODE} Solver with Empirical Model Statistics},
  author    = {Zheng, Kaiwen and Lu, Cheng and Chen, Jianfei and Zhu, Jun},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2310.13268},
}""",
    "xue2023sasolver": """@inproceedings{xue2023sasolver,
  title     = {{SA-Solver}: Stochastic {Adams} Solver for Fast Sampling of Diffusion Models},
  author    = {Xue, Shuchen and Yi, Mingyang and Luo, Weijian and Zhang, Shifeng and Sun, Jiacheng
               and Li, Zhenguo and Ma, Zhi-Ming},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2309.05019},
}""",
    "cui2023ersde": """@misc{cui2023ersde,
  title  = {Elucidating the Solution Space of Extended Reverse-Time {SDE} for Diffusion Models},
  author = {Cui, Qinpeng and Zhang, Xinyi and Bao, Qiqi and Liao, Qingmin},
  year   = {2023},
  eprint = {2309.06169},
}""",
    "hochbruck2010exponential": """@article{hochbruck2010exponential,
  title   = {Exponential integrators},
  author  = {Hochbruck, Marlis and Ostermann, Alexander},
  journal = {Acta Numerica},
  volume  = {19},
  pages   = {209--286},
  year    = {2010},
}""",
}


def cite(name: str) -> str:
    """BibTeX entry of the paper behind the registered solver ``name``.

    Raises ValueError for an unknown solver, naming the choices.
    """
    return PAPERS[find_solver(name).paper]

"""Numbers of parameters at K classes: what others give, to check against."""

# At K classes: counted in the code that goes with the papers. There IBLS's networks have one number more, a
# temperature, and OLS's ResNets idle branches, whose size is taken off here.
PUBLISHED: dict[tuple[str, int], int] = {
    ("preact_resnet18", 100): 11_217_444,  # PS-KD, ZLS
    ("preact_resnet10", 100): 4_985_324 - 38_600,  # ZLS, without two side heads that are never trained
    ("preact_resnet34", 100): 21_364_204 - 38_600,
    ("cifar_resnet18", 10): 11_173_962,  # IBLS
    ("cifar_resnet18", 100): 11_220_132,
    ("cifar_resnet34", 10): 21_282_122,
    ("cifar_resnet34", 100): 21_328_292,  # OLS
    ("cifar_resnet50", 100): 23_705_252,
    ("cifar_resnet68", 10): 41_353_546,  # IBLS
    ("cifar_resnet68", 100): 41_399_716,
    ("cifar_resnet101", 100): 42_697_380,  # PS-KD
    ("cifar_resnet152", 100): 58_341_028,  # OLS
    ("resnet56_bottleneck", 100): 614_452,
    ("resnet110", 10): 1_727_962,  # IBLS
    ("resnet110", 100): 1_733_812,
    ("resnet110_sd", 100): 1_733_812,  # IBLS
    ("resnet152_sd", 10): 2_408_474,
    ("resnet152_sd", 100): 2_414_324,
    ("cifar_densenet121", 100): 7_048_548,  # PS-KD
    ("cifar_densenet121_k12", 100): 1_035_268,  # OLS
    ("cifar_densenet40", 10): 176_122,  # IBLS
    ("cifar_densenet40", 100): 188_092,
    ("densenet_plain", 10): 758_226 + 2 * 49 * 64,  # IBLS, whose stem reads one channel
    ("resnext29_8x64d", 100): 34_518_948,  # PS-KD
    ("resnext29_2x64d", 100): 9_221_028,  # OLS
    ("resnext29_4x64d", 100): 27_288_996,
    ("resnext29_32x4d", 100): 4_866_468,
    ("pyramidnet200", 100): 26_844_952,  # PS-KD
    ("pyramidnet200_shakedrop", 100): 26_844_952,
    ("wrn_28_10", 100): 36_536_884,  # OLS
    ("wrn_40_4", 100): 8_972_340,
    ("resnet32_wide", 10): 46_172_810,  # IBLS
    ("resnet32_wide", 100): 46_230_500,
    ("cifar_vgg16", 100): 14_765_988,  # OLS
    ("cifar_mobilenet_v2_half", 100): 812_836,  # OLS
    ("cifar_shufflenet_v2", 100): 1_355_528,
    ("lenet", 10): 62_006,  # IBLS
    ("lenet", 100): 69_656,
    ("convnet", 10): 81_302,
    ("convnet", 100): 88_952,
    ("shallow_cnn", 10): 357_514,
    ("shallow_cnn", 100): 369_124,
    ("cifar_inception_v4", 10): 41_158_186,
    ("cifar_inception_v4", 100): 41_296_516,
    ("resnet18", 10): 11_181_642,
    ("resnet34", 100): 21_335_972,
    ("resnet50", 200): 23_917_832,  # OLS
    ("resnet101", 100): 42_705_060,  # IBLS
    ("resnet152", 1000): 60_192_808,  # PS-KD
    ("densenet121", 100): 7_056_356,  # IBLS
    ("densenet161", 10): 26_494_090,
    ("densenet161", 100): 26_692_900,
    ("mobilenet_v2", 200): 2_480_072,  # OLS
    ("vgg16", 200): 135_079_944,
    ("vgg16_blur", 200): 135_079_944,
}

# Our own counts, which no source gives: they say only that the networks stay as they are.
OURS: dict[tuple[str, int], int] = {
    ("resnet8x4", 100): 1_233_540,
    ("resnet32x4", 100): 7_433_860,
    ("wrn_16_2", 100): 703_284,
    ("wrn_40_1", 100): 569_780,
    ("wrn_40_2", 100): 2_255_156,
    ("cifar_vgg8_bn", 100): 3_965_028,
    ("cifar_vgg13_bn", 100): 9_462_180,
    ("densenet264", 1000): 33_337_704,
}

# From Zhao et al. 2020, He et al. 2016a, and Han et al. 2017, who do not say for how many classes.
MILLIONS: dict[tuple[str, int], float] = {
    ("san10_pairwise", 1000): 10.5,
    ("san15_pairwise", 1000): 14.1,
    ("san19_pairwise", 1000): 17.6,
    ("san10_patchwise", 1000): 11.8,
    ("san15_patchwise", 1000): 16.2,
    ("san19_patchwise", 1000): 20.5,
    ("resnet20", 10): 0.27,
    ("resnet32", 10): 0.46,
    ("resnet44", 10): 0.66,
    ("resnet56", 10): 0.85,
    ("pyramidnet164", 10): 27.0,
}

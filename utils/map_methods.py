"""Names of the methods that explain, for command lines, which do without torch: the methods are in explain/."""

# As the keys of explain.methods.METHODS, and explain.explained_study.TABLE_METHODS.
HEATMAPS = (
    *("grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam", "eigen_cam"),
    *("integrated_gradients", "occlusion", "smooth_grad"),
    "attention_rollout",
)
OF_TABLES = ("shapley", "lime", "attention")

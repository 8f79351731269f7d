"""`--engine vllm`, by vLLM's documented interface; the tests do not run it, as it needs a GPU.

Imports vLLM, axolotl's extra of that name, only where it is used.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from peft import PeftConfig

from axolotl_aot.errors import AOTConfigError
from axolotl_aot.generation.answers import Sampled
from axolotl_aot.generation.job import Batch
from axolotl_aot.trained.weights import kind_of

SEQUENCES_AT_ONCE = 512  # vLLM schedules them itself; this is what is lost when the process is killed


class VLLMEngine:
    """vLLM's `LLM` on one GPU, with an adapter as a `LoRARequest`."""

    def __init__(self, cfg: DictDefault, trained: Path | None):
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        adapter = trained if trained is not None and kind_of(trained) == "adapter" else None
        options: dict[str, Any] = {"enable_lora": adapter is not None}
        self._lora = None
        if adapter is not None:
            rank = PeftConfig.from_pretrained(str(adapter)).to_dict()["r"]
            options["max_lora_rank"] = max(8, 1 << (rank - 1).bit_length())  # it takes powers of two
            self._lora = LoRARequest("trained", 1, str(adapter.resolve()))
        if cfg.load_in_4bit:
            options["quantization"] = "bitsandbytes"
        self._llm = LLM(
            model=cfg.base_model if trained is None or adapter else str(trained),
            tokenizer=cfg.tokenizer_config or cfg.base_model,
            max_model_len=cfg.sequence_len,
            generation_config="vllm",  # not the model's own, whose penalties are not those of training
            **options,
        )
        self._eos = self._llm.get_tokenizer().eos_token_id

    @staticmethod
    def sequences_at_once(cfg: DictDefault) -> int:
        return SEQUENCES_AT_ONCE

    @staticmethod
    def require() -> None:
        if find_spec("vllm") is None:
            raise AOTConfigError(
                '--engine vllm: vLLM is not installed; pip install "axolotl[vllm]", or leave --engine out'
            )

    def answers(self, batch: Batch) -> list[Sampled]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        decoding = batch.decoding
        params = [
            SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.max_new_tokens,
                stop_token_ids=sorted(batch.ends),
                seed=batch.seed + i,
            )
            for i in range(len(batch.prompts))
        ]
        prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids in batch.prompts]
        outputs = self._llm.generate(prompts, params, lora_request=self._lora, use_tqdm=False)
        return [self._sampled(output.outputs[0], batch.ends) for output in outputs]

    def _sampled(self, output: Any, ends: frozenset[int]) -> Sampled:
        ids, finished = list(output.token_ids), output.finish_reason == "stop"
        if finished and ids[-1:] not in ([end] for end in (*ends, self._eos)):
            ids.append(self._eos if output.stop_reason is None else output.stop_reason)
        return Sampled(ids, finished)

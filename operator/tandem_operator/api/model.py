"""`spec.model`: which weights, where they come from and where they are kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tandem_operator.api.base import ApiModel, Name, Path, Quantity, Rule, Text, section


class SecretRef(ApiModel):
    name: Name = Field(description="Secret in the same namespace.")


class Cache(ApiModel):
    """Where downloaded models are kept; a HostPath or PVC cache is shared by pods and outlives them."""

    type: Literal["EmptyDir", "HostPath", "PVC"] = Field(
        "EmptyDir", description="EmptyDir downloads for each pod; HostPath once a node; PVC once (ReadWriteMany)."
    )
    path: Path | None = Field(None, description="HostPath: folder on the node, such as /mnt/nvme/models.")
    claim_name: Name | None = Field(None, description="PVC: claim in the same namespace.")
    size_limit: Quantity | None = Field(None, description="EmptyDir: most bytes it may take.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.type == 'HostPath') == has(self.path)",
            "storage.cache.path is required with cache.type HostPath and only allowed there: "
            "set it to a folder on the node",
        ),
        Rule(
            "(self.type == 'PVC') == has(self.claimName)",
            "storage.cache.claimName is required with cache.type PVC and only allowed there: set it to a claim's name",
        ),
        Rule(
            "self.type == 'EmptyDir' || !has(self.sizeLimit)",
            "storage.cache.sizeLimit is for cache.type EmptyDir only: remove it",
        ),
    )


class Storage(ApiModel):
    secret_ref: SecretRef | None = Field(
        None, description="Keys of the object store: AWS_ or TOS_ variables, one Secret key each; HF_TOKEN for hf://."
    )
    anonymous: bool = Field(False, description="Sign nothing: for public buckets.")
    endpoint: Text | None = Field(None, description="S3 or hub endpoint instead of the region's own.")
    network: Literal["Public", "VPC"] | None = Field(
        None, description="tos://: the region's public or in-VPC endpoint; default: the installation's, else Public."
    )
    addressing: Literal["auto", "virtual", "path"] = Field("auto", description="Bucket in the host name or path.")
    cache: Cache = section(Cache, "Where downloaded models are kept.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(self.anonymous && has(self.secretRef))",
            "storage.anonymous and storage.secretRef exclude each other: remove one",
        ),
        Rule(
            "!has(self.endpoint) || self.endpoint.matches('^https?://[^/@ ]+/?$')",
            "storage.endpoint must be a URL without path or password, such as https://tos-s3-cn-beijing.volces.com",
        ),
        Rule(
            "!(has(self.endpoint) && has(self.network) && self.network == 'VPC')",
            "storage.network VPC chooses the endpoint by region: remove storage.endpoint or storage.network",
        ),
    )


class ModelSpec(ApiModel):
    preset: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="A known model, such as Qwen3-32B; fills uri, served name, tensor parallelism and context."
    )
    uri: Text | None = Field(
        None,
        description="tos://BUCKET/PREFIX, s3://BUCKET/PREFIX, hf://ORG/NAME, pvc://CLAIM/PATH or hostPath:///PATH "
        "(a mounted vePFS); $NAME is replaced by the role's template.env.",
    )
    region: Annotated[str, Field(max_length=32, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")] | None = Field(
        None,
        description="Region of the bucket, such as cn-beijing; fills a preset's bucket and endpoint, where it defaults "
        "to the installation's.",
    )
    revision: Text | None = Field(None, description="hf://: branch, tag or commit.")
    served_name: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")] | None = Field(
        None, description="Name clients send as `model`; default: the preset's, else the last part of uri."
    )
    storage: Storage = section(Storage, "Credentials, endpoint and cache of the download.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.preset) != has(self.uri)", "model: set exactly one of preset and uri"),
        Rule(
            "!has(self.uri) || self.uri.matches('^(tos|s3|hf|pvc|hostPath)://.+')",
            "model.uri must start with tos://, s3://, hf://, pvc:// or hostPath://",
        ),
        Rule(
            r"!has(self.uri) || !self.uri.matches('(^|/)[.][.](/|$)')",
            "model.uri must not contain '..': name the folder itself",
        ),
        Rule(
            "!has(self.uri) || !self.uri.startsWith('hostPath://') || self.uri.matches('^hostPath://[/$].+')",
            "model.uri with hostPath:// needs an absolute path (three slashes) or $NAME, such as hostPath:///vepfs/Qwen3",
        ),
        Rule(
            "!has(self.uri) || !self.uri.startsWith('hf://') || self.uri.matches('^hf://[^/]+/[^/]+$')",
            "model.uri with hf:// must be hf://ORG/NAME",
        ),
        Rule(
            "!has(self.uri) || !self.uri.startsWith('pvc://') || "
            "self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$')",
            "model.uri with pvc:// must be pvc://CLAIM/PATH with the name of a claim",
        ),
        Rule(
            "!has(self.uri) || !self.uri.startsWith('tos://') || has(self.region) || has(self.storage.endpoint)",
            "model.region is required with a tos:// uri: name the bucket's region, such as cn-beijing, "
            "or set storage.endpoint",
        ),
        Rule(
            "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
            "model.revision is for hf:// uris only: remove it",
        ),
        Rule(
            "!has(self.uri) || !has(self.storage.network) || self.storage.network == 'Public' || "
            "self.uri.startsWith('tos://')",
            "model.storage.network VPC is for tos:// uris only: remove it",
        ),
        Rule(
            "!has(self.uri) || !self.uri.matches('^(pvc|hostPath)://') || "
            "(self.storage.cache.type == 'EmptyDir' && !has(self.storage.secretRef))",
            "model.storage: nothing is downloaded from pvc:// and hostPath:// uris; remove cache and secretRef",
        ),
    )

"""`spec.gateway`: the router in front, its keys and its Service."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tandem_operator.api.base import ApiModel, Name, Rule, StringMap, Text, section
from tandem_operator.api.pods import PodTemplate

CLB_CLASS = "volcengine.com/clb"
CLB_ANNOTATION = "service.beta.kubernetes.io/volcengine-loadbalancer-"


class ApiKeys(ApiModel):
    name: Name = Field(description="Secret in the same namespace.")
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        "api-keys", description="Key of the Secret whose value holds one API key a line."
    )


class Auth(ApiModel):
    api_key_secret_ref: ApiKeys | None = Field(None, description="Accepted API keys; without it everyone may call.")


class GatewayService(ApiModel):
    type: Literal["ClusterIP", "LoadBalancer"] = "ClusterIP"
    annotations: StringMap = Field({}, description="Subnet, security group, bandwidth: the cloud's own settings.")
    load_balancer_class: Text | None = None
    load_balancer_source_ranges: Annotated[list[Text], Field(max_length=64)] = Field([])
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    expose_metrics: bool = Field(True, description="Also offer port 8080.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.type == 'LoadBalancer' || !(has(self.loadBalancerClass) || has(self.externalTrafficPolicy) || "
            "(has(self.loadBalancerSourceRanges) && self.loadBalancerSourceRanges.size() > 0))",
            "gateway.service: loadBalancerClass, loadBalancerSourceRanges and externalTrafficPolicy need "
            "type LoadBalancer",
        ),
        Rule(
            f"!has(self.loadBalancerClass) || self.loadBalancerClass != '{CLB_CLASS}' || (has(self.annotations) && "
            f"('{CLB_ANNOTATION}subnet-id' in self.annotations || '{CLB_ANNOTATION}id' in self.annotations))",
            f"gateway.service.annotations: {CLB_CLASS} needs {CLB_ANNOTATION}subnet-id (a new load balancer) "
            f"or {CLB_ANNOTATION}id (an existing one), else it stays pending",
        ),
    )


class GatewaySpec(ApiModel):
    replicas: Annotated[int, Field(ge=1, le=100)] = 2
    strategy: Literal["PrefixAware", "LeastLoaded", "RoundRobin"] = Field(
        "PrefixAware", description="How pods are picked."
    )
    ui: bool = Field(True, description="Whether /ui has a chat page and a live view of the pods.")
    auth: Auth = section(Auth, "Who may call.")
    service: GatewayService = section(GatewayService, "How the gateway is reached.")
    template: PodTemplate = section(PodTemplate, "Pod fields.")

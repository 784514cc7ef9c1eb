{{- define "tandem.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "tandem.fullname" -}}
{{- $name := include "tandem.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "tandem.operator" -}}
{{ include "tandem.fullname" . }}-operator
{{- end }}

{{- define "tandem.selector" -}}
app.kubernetes.io/name: {{ include "tandem.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "tandem.ownLabels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/part-of: tandem
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tandem.labels" -}}
{{ include "tandem.labelsWith" (list .) }}
{{- end }}

{{- /* Labels of one object and ours over them: (list ROOT MAP...) */ -}}
{{- define "tandem.labelsWith" -}}
{{- $root := first . -}}
{{ include "tandem.merged" (concat (list $root.Values.commonLabels) (rest .) (list (include "tandem.ownLabels" $root | fromYaml))) }}
{{- end }}

{{- /* Of monitors and rules: what a Prometheus selects by. */ -}}
{{- define "tandem.monitorLabels" -}}
{{ include "tandem.labelsWith" (list . .Values.platform.monitorLabels .Values.monitoring.labels) }}
{{- end }}

{{- /* One map of several, null ones too, the last of which wins: YAML does not take a key twice. */ -}}
{{- define "tandem.merged" -}}
{{- $merged := dict -}}
{{- range . -}}
{{- $merged = mergeOverwrite $merged (default dict .) -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end }}

{{- define "tandem.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "tandem.operator" .) .Values.serviceAccount.name }}
{{- else -}}
{{ required "serviceAccount.name is required with serviceAccount.create=false" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{- /* Reference of an image value: (list . .Values.image) */ -}}
{{- define "tandem.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ include "tandem.text" ($image.tag | default (index . 0).Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{- /* Numbers of a values file are floats, and 20261123 would be printed as 2.0261123e+07. */ -}}
{{- define "tandem.text" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- /* Files of the operator's ConfigMap */ -}}
{{- define "tandem.config" -}}
presets.yaml: |
  {{- toYaml .Values.presets | nindent 2 }}
platform.yaml: |
  {{- $platform := dict }}
  {{- range $key, $value := .Values.platform }}
  {{- if $value }}
  {{- $_ := set $platform $key $value }}
  {{- end }}
  {{- end }}
  {{- toYaml $platform | nindent 2 }}
{{- end }}

{{- define "tandem.clusterName" -}}
{{ .Release.Namespace }}-{{ include "tandem.operator" . }}
{{- end }}

{{- /* Binding of the operator's account to a role: dict root, kind, name and, for a Role, namespace. */ -}}
{{- define "tandem.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  labels:
    {{- include "tandem.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "tandem.serviceAccount" .root }}
    namespace: {{ .root.Release.Namespace | quote }}
{{- end }}

{{- /* Not empty where a monitoring kind is wanted: (list . "auto" "PodMonitor"); auto: where the cluster has it. */ -}}
{{- define "tandem.wanted" -}}
{{- $api := printf "monitoring.coreos.com/v1/%s" (index . 2) -}}
{{- if or (eq (toString (index . 1)) "true") (and (eq (toString (index . 1)) "auto") ((index . 0).Capabilities.APIVersions.Has $api)) -}}
wanted
{{- end -}}
{{- end }}

{% include 'template/postgresql/deadline.py' %}
